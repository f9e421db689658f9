import dataclasses
import json
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from icrl_agents.backbones import backbone_names, make_backbone
from icrl_agents.backbones.weights import BackboneConfig, save_backbone
from icrl_agents.config import ModelConfig
from icrl_agents.envs import task_split
from icrl_agents.errors import ConfigError, DatasetError, IcrlError, MissingExtraError, UnknownNameError
from icrl_agents.hub import load_checkpoint
from icrl_agents.model import ActionPrediction, InContextModel
from icrl_agents.training import distillation
from icrl_agents.training.distillation import DistillationConfig, learning_rate, train
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.optimizers import Optimizers
from icrl_agents.training.presets import distillation_preset
from icrl_agents.training.run_state import load_run
from icrl_agents.training.validation import COMPONENT_STD, Validation, action_loss

TINY = {
    "mamba": {"d_model": 8, "n_layers": 1, "d_state": 4},
    "mamba2": {"d_model": 8, "n_layers": 1, "d_state": 4, "head_dim": 8},
    "transformer": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "context_length": 12},
}


def config(backbone="transformer", **changes) -> DistillationConfig:
    """Sequences of 4 episodes of 5 steps; a second's work."""
    default = DistillationConfig(
        name="tiny",
        env_id="icrl/ReacherGoal-v0",
        backbone=backbone,
        backbone_options=TINY[backbone],
        head_hidden=8,
        keep_every=2,
        episodes=4,
        updates=6,
        batch_size=3,
        warmup=2,
        val_fraction=0.3,
        val_episodes=0,
        validate_every=2,
    )
    return dataclasses.replace(default, **changes)


@pytest.fixture
def data(tmp_path, make_dataset):
    make_dataset(tmp_path / "data", tasks=4)
    return tmp_path / "data"


def quietly(config, data, out, *args, tensorboard=False, **options):
    return train(config, data, out, *args, tensorboard=tensorboard, quiet=True, device="cpu", **options)


def metrics(directory):
    """What was logged, without what depends on the clock."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


def assert_same_run(one, other):
    for file in ("model.safetensors", "training_state.safetensors"):
        expected, found = load_file(one / file), load_file(other / file)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), name
    assert metrics(one) == metrics(other)


def test_learning_rate_rises_and_falls():
    of = config(learning_rate=1.0, warmup=4, updates=11)
    rates = [learning_rate(of, update) for update in range(1, 12)]
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(rates[7], 0.5)  # half way from update 4 to the end, 12
    np.testing.assert_allclose(rates[10], 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert learning_rate(config(learning_rate=1.0, warmup=0, updates=1), 1) > 0


def test_squared_error_by_hand():
    prediction = ActionPrediction(torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]]), None)
    targets = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    assert action_loss(prediction, targets, torch.tensor([[1.0, 1.0, 0.0]])).item() == (0 + 4 + 4 + 0) / 4
    assert action_loss(prediction, targets, torch.tensor([[3.0, 1.0, 0.0]])).item() == (3 * 4 + 4) / 8


def test_likelihood_is_that_of_a_normal_distribution():
    torch.manual_seed(0)
    mean, log_std, targets = torch.randn(3, 2, 5, 2).unbind(0)
    weights = torch.rand(2, 5)
    expected = -(Normal(mean, log_std.exp()).log_prob(targets).mean(-1) * weights).sum() / weights.sum()
    found = action_loss(ActionPrediction(mean, log_std), targets, weights)
    torch.testing.assert_close(found, expected)


def test_likelihood_of_a_mixture_is_that_of_its_gaussians():
    """Against torch's own, in units in which one certain action's is the squared error."""
    torch.manual_seed(0)
    components, logits, targets = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    weights = torch.rand(2, 5)
    each = Independent(Normal(components, COMPONENT_STD), 1)
    mixture = MixtureSameFamily(Categorical(logits=logits), each)
    constant = 4 * (math.log(COMPONENT_STD) + 0.5 * math.log(2 * math.pi))
    scale = 2 * COMPONENT_STD**2 / 4
    expected = -((mixture.log_prob(targets) + constant) * weights).sum() / weights.sum() * scale
    mean = torch.full((2, 5, 4), math.nan)  # which one is taken does not matter
    prediction = ActionPrediction(mean, None, components, logits)
    torch.testing.assert_close(action_loss(prediction, targets, weights), expected)
    certain = ActionPrediction(mean, None, components, torch.tensor([0.0, -1e9, -1e9]).expand(2, 5, 3))
    squared = action_loss(ActionPrediction(components[..., 0, :], None), targets, weights)
    torch.testing.assert_close(action_loss(certain, targets, weights), squared)


def test_a_mixture_learns_both_of_two_actions_where_squared_error_learns_their_mean():
    """One of two opposite actions is right, nobody can tell which: half of the targets are each."""
    torch.manual_seed(0)
    tokens, targets = torch.zeros(64, 1, 20), torch.tensor([0.8, -0.8]).repeat(32)[:, None, None].expand(64, 1, 2)
    for head, size in (("deterministic", 0.0), ("mixture", 0.8)):
        model = InContextModel(ModelConfig(8, 2, "mamba", TINY["mamba"], head=head, head_hidden=16, head_components=4))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(200):
            optimizer.zero_grad()
            action_loss(model(tokens)[0], targets, torch.ones(64, 1)).backward()
            optimizer.step()
        mean = model(tokens)[0].mean.detach()
        torch.testing.assert_close(mean.abs(), torch.full((64, 1, 2), size), atol=0.05, rtol=0)
        assert (mean[..., 0] * mean[..., 1] >= -1e-3).all()  # one of the two, in both entries


@pytest.mark.parametrize("backbone", backbone_names())
def test_a_killed_run_ends_as_if_it_had_not_been_killed(data, tmp_path, monkeypatch, backbone):
    if backbone not in TINY:
        pytest.skip(f"no tiny {backbone}")
    of = config(backbone, random_offset=backbone == "mamba", muon_learning_rate=0.01 * (backbone != "mamba2"))
    quietly(of, data, tmp_path / "whole")

    monkeypatch.setattr(distillation, "SAVE_SECONDS", 0.0)
    do_update = distillation._Run._update

    def dying(self, update):
        if update == 4:
            raise SystemExit  # as abrupt as it gets: nothing of ours handles it
        return do_update(self, update)

    with monkeypatch.context() as patch:
        patch.setattr(distillation._Run, "_update", dying)
        with pytest.raises(SystemExit):
            quietly(of, data, tmp_path / "killed")
    assert [row["update"] for row in metrics(tmp_path / "killed")][-1] == 3
    quietly(of, data, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_kill_between_saves_repeats_what_was_lost(data, tmp_path, monkeypatch):
    """Nothing was saved before the kill, but log and checkpoint had been written."""
    quietly(config(), data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(distillation._Run, "_save", lambda self: sys.exit())
        with pytest.raises(SystemExit):
            quietly(config(), data, tmp_path / "killed")
    with (tmp_path / "killed/metrics.jsonl").open("a") as file:
        file.write('{"update": 7, "lo')  # cut in half
    quietly(config(), data, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_an_interrupt_in_the_last_update_stops_what_would_follow(data, tmp_path):
    def interrupting(agent):
        os.kill(os.getpid(), signal.SIGTERM)
        return np.zeros((3, 2))

    of = config(val_episodes=2, updates=2)
    with pytest.raises(KeyboardInterrupt, match="all 2 updates are done and saved"):
        quietly(of, data, tmp_path / "out", rollout=interrupting)
    assert quietly(of, data, tmp_path / "out", rollout=interrupting).best_update == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_the_same_call_goes_on(data, tmp_path, number):
    of = config(val_episodes=2)

    def rollout(agent):
        return np.zeros((3, 2))

    def interrupting(agent):
        os.kill(os.getpid(), number)
        return rollout(agent)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="saved after update 2 of 6; the same command goes on"):
        quietly(of, data, tmp_path / "stopped", rollout=interrupting)
    assert signal.getsignal(number) is handler
    quietly(of, data, tmp_path / "stopped", rollout=rollout)
    quietly(of, data, tmp_path / "whole", rollout=rollout)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_the_best_checkpoint_is_kept(data, tmp_path):
    """By roll-outs that say how good each model is; the score is the mean of the last quarter of episodes."""
    scores, weights = iter([1.0, 9.0, 3.0]), []

    def rollout(agent):
        weights.append({name: tensor.clone() for name, tensor in agent.model.state_dict().items()})
        returns = np.zeros((2, 8))
        returns[:, -2:] = [[1.0, 1.0], [3.0, 3.0]]
        return returns * next(scores) / 2

    result = quietly(config(val_episodes=8), data, tmp_path / "out", rollout=rollout)
    assert (result.best_update, result.best_score) == (4, 9.0)
    model, agent_config = load_checkpoint(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[1][name])
    assert any(not torch.equal(weights[2][name], weights[1][name]) for name in weights[1])
    assert (agent_config.name, agent_config.training_episodes, agent_config.episode_steps) == ("tiny", 4, 5)
    assert agent_config.action_high == (1.0, 1.0)
    rows = [row for row in metrics(tmp_path / "out") if "val_score" in row]
    assert [(row["update"], row["val_score"]) for row in rows] == [(2, 1.0), (4, 9.0), (6, 3.0)]
    assert rows[1]["val_returns"] == [0, 0, 0, 0, 0, 0, 9.0, 9.0]

    # A finished run stays as it is.
    again = quietly(config(val_episodes=8), data, tmp_path / "out", rollout=lambda agent: pytest.fail("ran"))
    assert again == result


def test_training_json_says_what_reproduces_the_agent(data, tmp_path, make_manifest):
    quietly(config(), data, tmp_path / "out")
    training = json.loads((tmp_path / "out/training.json").read_text())
    assert training["config"] == json.loads(json.dumps(dataclasses.asdict(config())))
    assert training["data"]["source"] == "invented"
    assert training["data"]["steps"] == 40
    assert training["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(training)


def test_it_learns(tmp_path, make_manifest, make_regular):
    """What to predict is half the sign of the observation; who does not see that has an error of 0.25."""
    manifest = make_manifest(tasks=8)
    arrays = make_regular(manifest, 8)
    arrays["actions"] = np.sign(arrays["observations"][..., :2]) / 2
    with HistoryWriter.create_or_resume(tmp_path / "data", manifest) as writer:
        writer.append(arrays, {})
        writer.finish(np.zeros(8))
    of = config("mamba", updates=80, batch_size=8, learning_rate=1e-2, validate_every=80, input_noise=0.0)
    quietly(of, tmp_path / "data", tmp_path / "out")
    rows = metrics(tmp_path / "out")
    assert rows[0]["loss"] > 0.2
    assert rows[-1]["val_loss"] < 0.1  # on tasks it was not trained on


@pytest.mark.parametrize(
    "change",
    [
        {"head": "gaussian"},
        {"head": "mixture", "head_components": 3},
        {"tokenization": "element"},
        {"mask_rewards": True},
        {"target": "source_mean", "val_fraction": 0.0},
        {"episodes": 40},  # longer than the histories: padded
        {"from_start": 1.0, "episodes": 1},
    ],
    ids=str,
)
def test_every_variant_trains(data, tmp_path, change):
    quietly(config(updates=2, **change), data, tmp_path / "out")
    rows = metrics(tmp_path / "out")
    assert [row["update"] for row in rows] == [1, 2, 2]
    assert ("val_loss" in rows[-1]) == (change.get("val_fraction") != 0.0)
    load_checkpoint(tmp_path / "out")


def test_masked_rewards_do_not_matter(data, tmp_path):
    quietly(config(updates=2, mask_rewards=True), data, tmp_path / "out")
    model, agent_config = load_checkpoint(tmp_path / "out")
    assert agent_config.model.mask_rewards
    tokens = torch.randn(1, 6, model.layout.size)
    other = tokens.clone()
    other[..., model.layout.previous_reward] += 5
    assert torch.equal(model(tokens)[0].mean, model(other)[0].mean)


def test_targets_of_the_final_policy(data, tmp_path):
    asked = set()

    def final_policy(task_index, observations):
        asked.add(task_index)
        return np.zeros((len(observations), 2))

    of = config(target="final_policy", updates=30, learning_rate=1e-2, validate_every=30)
    quietly(of, data, tmp_path / "out", final_policy)
    assert asked == {0, 1, 2, 3}
    assert metrics(tmp_path / "out")[-1]["val_loss"] < 0.05  # it only has to say 0


def test_another_run_is_refused_and_nothing_is_overwritten(data, tmp_path, make_dataset):
    quietly(config(updates=2), data, tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"holds another run, which differs in: config\.seed \(there 0, here 1\)"):
        quietly(config(updates=2, seed=1), data, tmp_path / "out")
    make_dataset(tmp_path / "more", tasks=4, episodes=9)
    with pytest.raises(ConfigError, match=r"differs in: data"):
        quietly(config(updates=2), tmp_path / "more", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before

    (tmp_path / "out/run.json").unlink()
    with pytest.raises(ConfigError, match="holds a checkpoint"):
        quietly(config(updates=2), data, tmp_path / "out")


def test_a_run_does_not_go_into_a_dataset(data, tmp_path):
    before = {path.name for path in data.iterdir()}
    with pytest.raises(ConfigError, match=f"{data.name} holds a dataset; choose another directory"):
        quietly(config(updates=2), data, data)
    assert {path.name for path in data.iterdir()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "curve.png", "metrics.jsonl"])
def test_what_is_not_of_a_run_is_known_before_the_first_update(data, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("my own")
    with pytest.raises(ConfigError, match=f"out holds {name}, and no run"):
        quietly(config(updates=2), data, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "my own"
    assert not (tmp_path / "out/run.json").exists()


def test_a_run_that_is_none_is_left_alone(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text('{"my": "own notes"}')
    with pytest.raises(ConfigError, match="holds another run"):
        quietly(config(updates=2), data, tmp_path / "out")
    assert (tmp_path / "out/run.json").read_text() == '{"my": "own notes"}'


def test_a_run_that_never_began_is_replaced(data, tmp_path):
    with pytest.raises(IcrlError):
        quietly(config(updates=2, init_backbone=str(tmp_path / "nowhere")), data, tmp_path / "out")
    assert (tmp_path / "out/run.json").exists()
    quietly(config(updates=2), data, tmp_path / "out")
    assert [row["update"] for row in metrics(tmp_path / "out")][-1] == 2


def test_tasks_that_are_held_out_are_never_trained_on(make_dataset, tmp_path):
    """Whether or not there are roll-outs, and in data whose split is not known here."""
    test = task_split("icrl/ReacherGoal-v0").test[:4]
    for name, split in (("named", {}), ("imported", {"split": "imported", "split_hash": "0"})):
        make_dataset(tmp_path / name, tasks=test, subset="test", **split)
        for changes, arguments in (({"val_episodes": 0}, {}), ({}, {"rollout": lambda agent: np.zeros((1, 1))})):
            with pytest.raises(DatasetError, match="validation or test tasks of split 'paper'"):
                quietly(config(updates=2, **changes), tmp_path / name, tmp_path / "out", **arguments)


@pytest.mark.parametrize("content", ["{", "[1]", '"text"', '{"config": ' + "1" * 5000 + "}", "[" * 100_000])
def test_a_damaged_identity_of_a_run_is_named(data, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        quietly(config(), data, tmp_path / "out")


FOREIGN_STATES = {
    "no metadata": ({"x": torch.zeros(1)}, None),
    "other metadata": ({"x": torch.zeros(1)}, {"format": "pt"}),
    "no object": ({"x": torch.zeros(1)}, {"run": "[1]"}),
    "no JSON": ({"x": torch.zeros(1)}, {"run": "{"}),
    "long number": ({"x": torch.zeros(1)}, {"run": '{"update": ' + "1" * 5000 + "}"}),
    "other weights": ({"model.x": torch.zeros(1)}, {"run": '{"update": 1, "sampler": ""}'}),
}


@pytest.mark.parametrize(("tensors", "metadata"), FOREIGN_STATES.values(), ids=FOREIGN_STATES.keys())
def test_a_foreign_state_of_a_run_is_named(data, tmp_path, tensors, metadata):
    quietly(config(updates=1), data, tmp_path / "out")
    save_file(tensors, tmp_path / "out/training_state.safetensors", metadata)
    with pytest.raises(DatasetError, match=r"training_state\.safetensors is damaged or not of this run"):
        quietly(config(updates=1), data, tmp_path / "out")


def test_optimizer_states_of_other_names_are_refused(tmp_path):
    model = torch.nn.Linear(1, 1)
    metadata = {"run": '{"update": 1, "sampler": ""}'}
    for name in ("optimizer.step", "optimizer.step.bogus"):
        tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()} | {name: torch.zeros(1)}
        save_file(tensors, tmp_path / "training_state.safetensors", metadata)
        with pytest.raises(DatasetError, match=r"training_state\.safetensors"):
            load_run(tmp_path, model, Optimizers(torch.optim.AdamW(model.parameters())))


def test_data_of_another_environment_is_refused(tmp_path, make_dataset):
    make_dataset(tmp_path / "data", env_id="icrl/AntDir-v0")
    with pytest.raises(DatasetError, match=r"is of icrl/AntDir-v0, the run of icrl/ReacherGoal-v0"):
        quietly(config(), tmp_path / "data", tmp_path / "out")
    make_dataset(tmp_path / "three", action_dim=3)
    with pytest.raises(DatasetError, match="actions of 3 entries"):
        quietly(config(), tmp_path / "three", tmp_path / "out")


def test_one_process_works_on_a_run(data, tmp_path):
    def rollout(agent):
        with pytest.raises(DatasetError, match="in use by another process"):
            quietly(config(), data, tmp_path / "out")
        return np.zeros((1, 1))

    quietly(config(updates=1, val_episodes=1), data, tmp_path / "out", rollout=rollout)


def test_divergence_is_an_error_that_says_what_to_do(data, tmp_path):
    of = config(learning_rate=1e30, warmup=0, clip_norm=1e30)
    with pytest.raises(ConfigError, match=r"diverged at update \d.*smaller learning_rate than 1e\+30"):
        quietly(of, data, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"updates": 0},
        {"val_episodes": -1},
        {"val_fraction": 1.0},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"clip_norm": math.nan},
        {"clip_norm": -1.0},
        {"input_noise": math.nan},
        {"weight_decay": -1.0},
        {"seed": 2**63},
        {"keep_every": 0},
        {"learning_rate": math.nan},
        {"muon_learning_rate": -1.0},
        {"muon_learning_rate": math.inf},
        {"muon_learning_rate": 0.01, "learning_rate": 0.0},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        config(**change)


def test_tensorboard_files_and_the_extra_that_brings_them(data, tmp_path, monkeypatch):
    quietly(config(updates=1), data, tmp_path / "out", tensorboard=True)
    (events,) = (tmp_path / "out/tensorboard").iterdir()
    assert b"val_loss" in events.read_bytes()

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"icrl-agents\[train\]"):
        quietly(config(updates=1), data, tmp_path / "other", tensorboard=True)
    quietly(config(updates=1), data, tmp_path / "without", tensorboard=None)
    assert not (tmp_path / "without/tensorboard").exists()


def test_the_callers_random_numbers_are_left_alone(data, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quietly(config(updates=1), data, tmp_path / "out")
    assert torch.equal(torch.rand(3), expected)


def test_validation_rolls_out_on_unseen_tasks(tmp_path, make_dataset):
    split = task_split("icrl/ReacherGoal-v0", "paper")
    known = {"split_hash": split.content_hash, "episode_steps": 50}
    tasks = {"tasks": split.train[:3]}
    make_dataset(tmp_path / "data", episodes=4, **known, **tasks)
    of = config(updates=1, val_episodes=1, episodes=2)
    result = quietly(of, tmp_path / "data", tmp_path / "out")
    assert -200 < result.best_score < 0  # what Reacher's rewards add up to

    make_dataset(tmp_path / "leak", **known, tasks=(*split.train[:3], split.val[0]))
    with pytest.raises(DatasetError, match="hold validation or test tasks"):
        quietly(of, tmp_path / "leak", tmp_path / "out2")
    make_dataset(tmp_path / "old", **known | {"split_hash": "0123"}, **tasks)
    with pytest.raises(DatasetError, match="'paper' with hash 0123"):
        quietly(of, tmp_path / "old", tmp_path / "out3")


def test_data_of_a_split_that_is_not_known_here_is_validated_by_its_loss(tmp_path, make_dataset, monkeypatch):
    """What was imported, in which a task may stand several times: it is trained on or held out as a whole."""
    one, other = task_split("icrl/ReacherGoal-v0").train[:2]
    make_dataset(tmp_path / "data", split="imported", split_hash="", tasks=(one, one, one, other, other))
    parts = []
    split = distillation._split
    monkeypatch.setattr(distillation, "_split", lambda *arguments: parts.extend(split(*arguments)) or parts[-2:])
    result = quietly(config(updates=2, val_episodes=5), tmp_path / "data", tmp_path / "out")
    assert result.best_score < 0  # a loss
    goals = [{part.dataset.task(history)["goal"][0] for history in part.histories} for part in parts]
    assert all(len(part) == 1 for part in goals)
    assert goals[0] != goals[1]


@pytest.mark.parametrize(
    ("loss", "returns", "score"),
    [
        (0.5, None, -0.5),
        (0.5, (1.0, 2.0, 3.0, 4.0), 4.0),
        (None, tuple(range(8)), 6.5),
        (None, (3.0,), 3.0),
        (None, None, 0.0),
    ],
)
def test_score(loss, returns, score):
    assert Validation(loss, returns).score == score


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_presets_build(preset, backbone):
    of = distillation_preset("icrl/ReacherGoal-v0", preset, backbone)
    assert of.name == f"reacher-goal-{backbone}"
    with torch.device("meta"):
        model = InContextModel(ModelConfig(8, 2, of.backbone, of.backbone_options))
    size = sum(parameter.numel() for parameter in model.parameters())
    if preset == "paper":
        positions = of.backbone_options.get("max_positions", 0) * of.backbone_options["d_model"]
        assert 5.5e6 < size - positions < 6.5e6  # "6M", tables 6 and 7


def test_laptop_backbones_are_of_one_size():
    sizes = []
    for backbone in ("mamba", "transformer"):
        of = distillation_preset("icrl/ReacherGoal-v0", "laptop", backbone)
        model = InContextModel(ModelConfig(8, 2, of.backbone, of.backbone_options))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert max(sizes) < 1.15 * min(sizes)


def test_unknown_presets_list_the_known():
    with pytest.raises(UnknownNameError, match="Known: laptop, paper"):
        distillation_preset("icrl/ReacherGoal-v0", "lapdog")
    with pytest.raises(UnknownNameError, match="Known: mamba, mamba2, transformer"):
        distillation_preset("icrl/ReacherGoal-v0", "laptop", "lstm")
    with pytest.raises(UnknownNameError, match=r"icrl/ReacherGoal-v0"):
        distillation_preset("icrl/Nowhere-v0", "laptop")


@pytest.mark.soak
def test_survives_kill_9(data, tmp_path, whole_and_killed):
    """A process killed again and again ends with the weights of one that was left in peace."""
    script = """
import json, sys, torch
from pathlib import Path
from icrl_agents.config import from_dict
from icrl_agents.training import distillation
torch.set_num_threads(1)
distillation.SAVE_SECONDS = 0.0
config = from_dict(distillation.DistillationConfig, json.loads(sys.argv[1]))
distillation.train(config, sys.argv[2], sys.argv[3], tensorboard=False, quiet=True, device="cpu")
"""
    of = config("mamba", updates=400, validate_every=50)

    whole_and_killed(script, [json.dumps(dataclasses.asdict(of)), str(data)], tmp_path, range(50, 301, 50))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_starts_from_the_weights_of_a_backbone(data, tmp_path):
    """Two runs of another seed each: their backbones are the same before the first update, at learning rate 0."""
    first = config("mamba", learning_rate=0.0, updates=1)
    quietly(first, data, tmp_path / "first")
    backbone = load_checkpoint(tmp_path / "first")[0].backbone
    save_backbone(tmp_path / "backbone", BackboneConfig("mamba", TINY["mamba"]), backbone.state_dict())
    second = dataclasses.replace(first, seed=1, init_backbone=str(tmp_path / "backbone"))
    quietly(second, data, tmp_path / "second")
    started = load_checkpoint(tmp_path / "second")[0].backbone.state_dict()
    for name, weight in backbone.state_dict().items():
        torch.testing.assert_close(started[name], weight, rtol=0, atol=0)


def test_a_backbone_of_another_shape_is_refused(data, tmp_path):
    other = {**TINY["mamba"], "d_model": 16}
    backbone = make_backbone("mamba", other)
    save_backbone(tmp_path / "backbone", BackboneConfig("mamba", other), backbone.state_dict())
    with pytest.raises(ConfigError, match="not shaped like"):
        quietly(config("mamba", init_backbone=str(tmp_path / "backbone")), data, tmp_path / "run")
