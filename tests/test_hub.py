"""Checkpoints: what is saved is what is loaded, and nothing else is."""

import json
import os
import pickle
import resource
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import golden_actions
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from icrl_agents import backbones, hub, publishing
from icrl_agents.agent import InContextAgent
from icrl_agents.backbones.mamba import Mamba
from icrl_agents.config import from_dict, to_dict
from icrl_agents.errors import CheckpointError, ConfigError, IcrlError, InputError, UnknownNameError
from icrl_agents.model import InContextModel
from icrl_agents.model_card import card_of_repository, model_card

EVALUATION = {
    "agent": "tiny-mamba",
    "env_id": "icrl/ReacherGoal-v0",
    "split": "paper",
    "subset": "test",
    "returns": [[-10.0, -6.0, -4.0], [-12.0, -8.0, -2.0]],
    "normalized": [[0.0, 0.5, 0.75], [0.0, 0.25, 0.25]],
    "anchors": {"blind": [-10.0, -12.0], "oracle": [-2.0, -4.0]},
    "seeds": [0, 1],
    "summary": {
        "first_return": {"mean": -11.0, "iqm": -11.0, "low": -12.0, "high": -10.0},
        "final_return": {"mean": -7.0, "iqm": -7.25, "low": -7.33, "high": -6.67},
        "final_normalized": {"mean": 0.5, "iqm": 0.5, "low": 0.25, "high": 0.75},
        "final_normalized_of_means": {"mean": 0.51, "low": 0.26, "high": 0.76},
    },
    "controls": {
        "swapped_rewards": {
            "nearer_to_rewarded": 0.5,
            "error_to_rewarded": {"mean": 0.01, "iqm": 0.01, "low": 0.005, "high": 0.015},
            "error_to_own": {"mean": 0.2, "iqm": 0.2, "low": 0.1, "high": 0.3},
        },
        "reset_each_episode": {"final_normalized": {"mean": 0.125, "iqm": 0.1, "low": 0.0, "high": 0.25}},
    },
}
TRAINING = {"recipe": "on-policy distillation", "config": {"k": 4}}


@pytest.fixture
def saved(agent, tmp_path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "curve.png").write_bytes(b"drawn")
    (directory / "replay.mp4").write_bytes(b"filmed")
    hub.save_checkpoint(directory, agent.model, agent.config, evaluation=EVALUATION, training=TRAINING)
    return directory


# ------------------------------------------------------------------ save and load


@pytest.mark.parametrize("tokenization", ["transition", "element"])
@pytest.mark.parametrize("head", ["deterministic", "gaussian", "mixture"])
@pytest.mark.parametrize("backbone", backbones.backbone_names())
def test_save_load_same_actions(make_agent, tmp_path, backbone, head, tokenization):
    agent = make_agent(backbone, head=head, tokenization=tokenization)
    agent.model.token_mean.uniform_(-1, 1)
    agent.save_pretrained(tmp_path / "a" / "b")
    again = InContextAgent.from_pretrained(tmp_path / "a" / "b", device="cpu")
    assert again.config == agent.config
    rng = np.random.default_rng(0)
    for one in (agent, again):
        one.reset(seed=0)
    for _ in range(5):
        obs, reward = rng.normal(size=8), rng.normal()
        np.testing.assert_array_equal(agent.act(obs), again.act(obs))
        for one in (agent, again):
            one.observe(reward, False)


def test_a_checkpoint_has_its_files_and_no_leftovers(saved):
    assert sorted(os.listdir(saved)) == sorted(hub.CHECKPOINT_FILES)
    assert json.loads((saved / "evaluation.json").read_text()) == EVALUATION
    assert json.loads((saved / "training.json").read_text()) == TRAINING
    plain = saved.parent / "plain"
    plain.touch()
    for file in saved.iterdir():  # readable for others, as any new file
        assert file.stat().st_mode == plain.stat().st_mode


def test_loading_spends_none_of_the_callers_random_numbers(saved):
    before = torch.get_rng_state()
    hub.load_checkpoint(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kill_while_saving_leaves_the_old_file_whole(saved, make_agent, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    model, config = hub.load_checkpoint(saved)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            hub.save_checkpoint(saved, model, replace(config, name="other"))
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_the_same_weights_keep_what_was_said_of_them(saved):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    model, config = hub.load_checkpoint(saved)
    hub.save_checkpoint(saved, model, config)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    other = EVALUATION | {"seeds": [7]}
    hub.save_checkpoint(saved, model, config, evaluation=other)
    assert json.loads((saved / "evaluation.json").read_text()) == other
    assert json.loads((saved / "training.json").read_text()) == TRAINING
    assert "on-policy-distillation" in ModelCard.load(saved / "README.md").data.tags


@pytest.mark.parametrize("killed", [False, True])
def test_new_weights_do_not_inherit_what_was_said_of_the_old_ones(saved, monkeypatch, killed):
    model, config = hub.load_checkpoint(saved)
    with torch.no_grad():
        next(model.head.parameters()).add_(1.0)
    if killed:  # just after the weights
        replace_file = os.replace

        def kill(source, target):
            replace_file(source, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            hub.save_checkpoint(saved, model, config, evaluation=EVALUATION)
        assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
        return
    hub.save_checkpoint(saved, model, config)
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    assert "Nothing was measured yet." in (saved / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "training.json", "curve.png"])
def test_nobodys_own_files_are_replaced(saved, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("my own")
    with pytest.raises(ConfigError, match=f"mine holds {name}"):
        hub.save_checkpoint(tmp_path / "mine", *hub.load_checkpoint(saved))
    assert {file.name: file.read_text() for file in (tmp_path / "mine").iterdir()} == {name: "my own"}


def test_nobodys_own_weights_are_replaced(saved, tmp_path):
    (tmp_path / "mine").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "mine/model.safetensors")
    (tmp_path / "mine/README.md").write_text("my own")
    with pytest.raises(ConfigError, match=r"mine holds model\.safetensors, README\.md, and no checkpoint"):
        hub.save_checkpoint(tmp_path / "mine", *hub.load_checkpoint(saved))
    assert (tmp_path / "mine/README.md").read_text() == "my own"


def test_a_damaged_file_that_would_stay_is_named(saved):
    model, config = hub.load_checkpoint(saved)
    for content in ("{", "[1]", '{"seed": ' + "1" * 5000 + "}"):
        (saved / "training.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"training\.json is damaged"):
            hub.save_checkpoint(saved, model, config)


class Counting(Mamba):
    """A backbone with buffers that are not real numbers."""

    def __init__(self, config):
        super().__init__(config)
        for dtype in (torch.int64, torch.int32, torch.bool):
            self.register_buffer(str(dtype).partition(".")[2], torch.ones(3, dtype=dtype))


def test_buffers_of_whole_numbers_and_flags_are_saved_too(make_agent, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "_BACKBONES", dict(backbones._BACKBONES))
    monkeypatch.setattr(sys.modules["icrl_agents.backbones.mamba"], "Counting", Counting, raising=False)
    backbones.register_backbone(
        "counting", "icrl_agents.backbones.mamba:Counting", "icrl_agents.backbones.mamba:MambaConfig"
    )
    config = make_agent().config
    config = replace(config, model=replace(config.model, backbone="counting"))
    model = InContextModel(config.model)
    model.backbone.int64.fill_(2**60 + 1)
    hub.save_checkpoint(tmp_path, model, config)
    again, _ = hub.load_checkpoint(tmp_path)
    assert again.backbone.int64.tolist() == [2**60 + 1] * 3
    assert (again.backbone.int32.dtype, again.backbone.bool.dtype) == (torch.int32, torch.bool)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_tokens_are_not_divided_by_what_is_not_positive(saved, make_agent, tmp_path, value):
    rewrite(saved, lambda weights: weights["token_std"][3:4].fill_(value))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: token_std"):
        hub.load_checkpoint(saved)
    agent = make_agent()
    agent.model.token_std[3] = value
    with pytest.raises(CheckpointError, match="token_std"):
        agent.save_pretrained(tmp_path / "x")


def test_saving_refuses_what_could_not_be_loaded(make_agent, make_config, tmp_path):
    model = make_agent().model
    with pytest.raises(ConfigError, match="was built from"):
        hub.save_checkpoint(tmp_path / "x", model, make_config("transformer"))
    with torch.no_grad():
        model.embed.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"embed\.weight.*finite"):
        hub.save_checkpoint(tmp_path / "x", model, make_config())
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------ damaged and crafted checkpoints


def rewrite(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def first(weights):
    return next(name for name in sorted(weights) if name.startswith("backbone"))


DAMAGE = {
    "missing tensor": lambda w: w.pop(first(w)),
    "foreign tensor": lambda w: w.update(extra=torch.zeros(1)),
    "renamed tensor": lambda w: w.update(other=w.pop(first(w))),
    "shape": lambda w: w.update({first(w): torch.zeros(3, 7)}),
    "dtype": lambda w: w.update({first(w): w[first(w)].double()}),
    "not finite": lambda w: w[first(w)].fill_(torch.inf),
    "empty": lambda w: w.clear(),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_weights_that_do_not_fit_are_refused(saved, change):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        hub.load_checkpoint(saved)


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


CONTENT = {
    "truncated": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "longer": lambda whole: whole + b"0",
    "empty": lambda whole: b"",
    "header only": lambda whole: whole[:8],
    "huge header": lambda whole: (1 << 40).to_bytes(8, "little") + whole[8:],
    "pickle": lambda whole: pickle.dumps(Exploit()),
    "zip": lambda whole: b"PK\x03\x04" + whole,
}


@pytest.mark.parametrize("content", CONTENT.values(), ids=CONTENT.keys())
def test_files_that_are_no_whole_safetensors_are_refused(saved, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    weights = saved / "model.safetensors"
    weights.write_bytes(content(weights.read_bytes()))
    with pytest.raises(CheckpointError, match="safetensors"):
        hub.load_checkpoint(saved)
    assert not Path("exploited").exists()


def test_a_torch_pickle_beside_the_config_is_not_read(saved):
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="does not exist"):
        hub.load_checkpoint(saved)
    torch.save(weights, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="pickles are never read"):
        hub.load_checkpoint(saved)


SIZES = {
    "wider": {"d_model": 32},
    "a million wide": {"d_model": 1_000_000},
    "more than an address space": {"d_model": 1 << 60},
    "beyond int64": {"d_model": 1 << 80},
    "a billion layers": {"n_layers": 1_000_000_000},
    "a trillion states": {"d_state": 1_000_000_000_000},
    "no layers": {"n_layers": 0},
    "negative": {"d_model": -16},
    "zero": {"d_model": 0},
    "text": {"d_model": "16"},
    "unknown option": {"depth": 3},
}


@pytest.mark.parametrize("options", SIZES.values(), ids=SIZES.keys())
def test_a_config_of_other_sizes_is_refused_before_anything_is_allocated(saved, options):
    data = json.loads((saved / "config.json").read_text())
    data["model"]["backbone_options"] |= options
    (saved / "config.json").write_text(json.dumps(data))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(IcrlError):
        hub.load_checkpoint(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 500_000


def edited(directory, **model):
    """Other entries of the config's model."""
    data = json.loads((directory / "config.json").read_text())
    data["model"] |= model
    (directory / "config.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    "model",
    [
        {"head_layers": 10**6},
        {"head_hidden": 10**9},
        {"observation_dim": 10**9},
        {"head": "mixture", "head_components": 10**9},
    ],
)
def test_other_sizes_of_the_model_are_refused_before_anything_is_allocated(saved, model):
    edited(saved, **model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(IcrlError):
        hub.load_checkpoint(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < peak + 500_000


def test_a_list_of_very_many_tensors_is_refused(saved):
    save_file({str(i): torch.zeros(0) for i in range(hub.MAX_TENSORS + 1)}, saved / "model.safetensors")
    edited(saved, head_layers=hub.MAX_TENSORS)
    with pytest.raises(CheckpointError, match=f"{hub.MAX_TENSORS + 1} tensors; expected from 1 to {hub.MAX_TENSORS}"):
        hub.load_checkpoint(saved)


def test_a_header_that_claims_terabytes_is_refused(saved):
    claim = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"embed.weight": claim}).encode()
    (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        hub.load_checkpoint(saved)


def test_names_that_are_no_names(packaged):
    for name in (None, 3, b"mine", ["mine"]):
        with pytest.raises(InputError, match="name or directory"):
            hub.resolve(name)


def test_the_digest_of_a_bundled_agent_is_compared(packaged):
    digest = sha256((packaged / "mine-v1/model.safetensors").read_bytes()).hexdigest()
    index = json.loads((packaged / "index.json").read_text())
    for expected in (digest, "0" * 64):
        index["mine"]["sha256"] = expected
        (packaged / "index.json").write_text(json.dumps(index))
        if expected == digest:
            assert hub.resolve("mine") == packaged / "mine-v1"
        else:
            with pytest.raises(CheckpointError, match=f"has SHA-256 {digest}, expected 0000"):
                hub.resolve("mine")


def test_a_gigantic_memory_is_refused(make_agent, tmp_path):
    make_agent("transformer").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data["model"]["backbone_options"]["context_length"] = 1 << 40
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="memory would be"):
        hub.load_checkpoint(tmp_path)


def test_config_and_weights_of_different_agents_do_not_mix(make_agent, tmp_path):
    make_agent().save_pretrained(tmp_path / "a")
    make_agent("transformer").save_pretrained(tmp_path / "b")
    os.replace(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its config"):
        hub.load_checkpoint(tmp_path / "a")


def test_an_unknown_backbone_lists_the_known(saved):
    data = json.loads((saved / "config.json").read_text())
    data["model"]["backbone"] = "mamba7"
    (saved / "config.json").write_text(json.dumps(data))
    with pytest.raises(UnknownNameError, match="Did you mean 'mamba'"):
        hub.load_checkpoint(saved)


def test_a_missing_or_enormous_config(saved):
    (saved / "config.json").write_text(" " * (hub.MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="not a config"):
        hub.load_checkpoint(saved)
    (saved / "config.json").unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        hub.load_checkpoint(saved)


# ------------------------------------------------------------------ names


@pytest.fixture
def packaged(tmp_path, monkeypatch, make_agent):
    """A package whose index has one bundled agent, ``mine``, and two on the Hub."""
    package = tmp_path / "package"
    make_agent().save_pretrained(package / "mine-v1")
    index = {
        "mine": {"bundled": "mine-v1"},
        "theirs": {"repo": "org/theirs", "revision": "main", "sha256": "0" * 64},
    }
    (package / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(hub, "packaged", lambda: package)
    return package


def test_a_directory_comes_before_a_bundled_name(packaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("mine") == packaged / "mine-v1"
    (tmp_path / "mine").mkdir()
    assert hub.resolve("mine") == Path("mine")
    assert hub.resolve(tmp_path / "mine") == tmp_path / "mine"


@pytest.mark.parametrize("name", ["mini", "org/name/more", "/no/such/dir", "../mine", "", "a b/c", "org/..", "mine/"])
def test_an_unknown_name_lists_the_known(packaged, name):
    with pytest.raises(UnknownNameError, match=r"Known: mine, theirs\."):
        hub.resolve(name)
    with pytest.raises(UnknownNameError):
        hub.resolve(Path("org/name-that-is-no-directory"))


def test_only_the_hub_has_revisions(packaged):
    for name in ("mine", packaged / "mine-v1"):
        with pytest.raises(ConfigError, match="no revision 'v2'"):
            hub.resolve(name, "v2")


@pytest.mark.parametrize("entry", [{}, {"bundled": "a", "repo": "b/c"}, {"path": "a"}, "a"])
def test_a_wrong_index_entry_is_refused(entry):
    with pytest.raises(ConfigError):
        from_dict(hub.IndexEntry, entry)


def test_summaries_of_the_bundled_agents(packaged, make_agent):
    agent = make_agent()
    hub.save_checkpoint(packaged / "mine-v1", agent.model, agent.config, evaluation=EVALUATION)
    parameters = f"{sum(t.numel() for t in agent.model.parameters()):,}"
    assert hub.bundled_agents() == [
        ("mine", "icrl/ReacherGoal-v0", "mamba", parameters, "0.50 [0.25, 0.75]"),
        ("theirs", "on the Hub: org/theirs", "-", "-", "-"),
    ]
    one_task = EVALUATION | {"summary": {"final_normalized": {"mean": 0.125}}}
    hub.save_checkpoint(packaged / "mine-v1", agent.model, agent.config, evaluation=one_task)
    assert hub.bundled_agents()[0].final_normalized == "0.12"
    (packaged / "mine-v1/evaluation.json").unlink()
    assert hub.bundled_agents()[0].final_normalized == "-"


def test_every_agent_in_the_package_loads_and_all_fit_in_40_megabytes():
    entries = hub.index()
    assert tuple(sorted(entries)) == hub.agent_names()
    for name, entry in entries.items():
        if entry.bundled is not None:
            assert InContextAgent.from_pretrained(name, device="cpu").config.name == name
    files = [file for file in hub.packaged().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6


GOLDEN = json.loads(golden_actions.GOLDEN_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", hub.agent_names())
def test_a_published_agent_keeps_its_actions(name):
    """But for what kernels round differently."""
    np.testing.assert_allclose(golden_actions.actions_of(name), GOLDEN[name], atol=1e-4)


# ------------------------------------------------------------------ the card


@pytest.mark.parametrize(("low", "good"), [(0.1, True), (-0.1, False)])
def test_the_card_says_of_an_agent_that_learns_nothing_that_it_does_not(make_config, low, good):
    summary = {"final_normalized": {"mean": 0.2, "low": low, "high": 0.3, "iqm": 0.2}}
    card = model_card(make_config(), {**EVALUATION, "summary": summary})
    assert ("learns a task it has never seen" in card) == good
    assert ("not measurably better than" in card) != good
    assert (f"(normalized return 0.20 [{low:.2f}, 0.30]" in card) != good


def test_the_card_holds_the_measured_numbers(make_config):
    card = ModelCard(model_card(make_config(), EVALUATION))
    assert card.data.library_name == "icrl-agents"
    assert card.data.model_name == "tiny-mamba"
    assert {"reinforcement-learning", "icrl/ReacherGoal-v0", "mamba"} <= set(card.data.tags)
    first_episode, last_episode = card.data.eval_results
    assert first_episode.metric_value == -11.0  # (-10 - 12) / 2
    assert last_episode.metric_value == -3.0  # (-4 - 2) / 2
    assert "| return | -11.00 | -7.00 | -3.00 |" in card.text
    assert "| normalized (0 blind, 1 oracle) | 0.00 | 0.38 | 0.50 |" in card.text
    assert "blind -11.00, oracle -3.00" in card.text
    assert "| return of the last episodes | -7.00 [-7.33, -6.67] | -7.25 |" in card.text
    assert "| normalized, last episodes, ratio of the means | 0.51 [0.26, 0.76] | - |" in card.text
    assert "50% of the tasks" in card.text
    assert "error to the rewarded task 0.010 [0.005, 0.015], to its own 0.200 [0.100, 0.300]" in card.text
    assert "Memory emptied at each episode: normalized return 0.12 [0.00, 0.25]" in card.text
    assert "Evaluation seeds: 0, 1." in card.text
    assert "`icrl-agents evaluate tiny-mamba --tasks 2 --episodes 3 --seed 0 1`" in card.text
    assert "sequences of 4 episodes" in card.text
    assert ".png" not in card.text
    assert "<video" not in card.text


def test_the_card_of_a_full_evaluation_gives_the_short_command(make_config):
    measured = EVALUATION | {"returns": [[-3.0] * 40] * 30, "normalized": None, "seeds": [0, 1, 2]}
    assert "`icrl-agents evaluate tiny-mamba --seed 0 1 2`" in model_card(make_config(), measured)


@pytest.mark.parametrize(
    "recipe", ["algorithm distillation", "on-policy distillation", "on-policy distillation + reinforcement fine-tuning"]
)
def test_the_card_names_the_recipe_and_no_other(make_config, recipe):
    card = ModelCard(model_card(make_config(), training={"recipe": recipe}))
    tags = [tag for tag in card.data.tags if "distillation" in tag or "fine-tuning" in tag]
    assert tags == [part.replace(" ", "-") for part in recipe.split(" + ")]
    assert f"| trained by | {recipe} |" in card.text
    assert "`training.json` holds what reproduces it." in card.text


def test_the_card_shows_the_picture_that_lies_beside_it(saved):
    card = (saved / "README.md").read_text()
    assert "](curve.png)" in card
    assert '<video controls autoplay loop muted src="replay.mp4">' in card


def test_a_card_names_the_repository_it_lies_in(make_config):
    card = model_card(make_config(), EVALUATION)
    there = card_of_repository(card, "tiny-mamba", "org/tiny")
    assert 'from_pretrained("org/tiny")' in there
    assert "`icrl-agents evaluate org/tiny --tasks 2" in there
    assert "# tiny-mamba\n" in there
    assert card_of_repository(card, "tiny", "org/tiny") == card


def test_a_card_without_an_evaluation_claims_nothing(make_config):
    card = ModelCard(model_card(make_config()))
    assert "Nothing was measured yet." in card.text
    assert card.data.eval_results is None
    assert not [tag for tag in card.data.tags if "distillation" in tag]
    assert "training.json" not in card.text
    assert "learns a task it has never seen" not in card.text
    assert "It was trained on lives" not in card.text
    assert "in one task each" in model_card(make_config(), training={"recipe": "on-policy distillation"})


def test_the_cards_code_runs(packaged, make_config, monkeypatch):
    config = replace(make_config(), name="mine", training_episodes=2, episode_steps=3)
    code = model_card(config).split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(code, namespace)
    assert np.isfinite(namespace["reward"])


def test_nothing_broken_is_pushed(saved):
    (saved / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        publishing.push_to_hub(saved, "org/agent")


def test_loaded_models_are_in_evaluation_mode_and_equal(saved, agent):
    model, config = hub.load_checkpoint(saved)
    assert isinstance(model, InContextModel)
    assert not model.training
    assert to_dict(config) == to_dict(agent.config)
    for name, tensor in agent.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_bundled_cards_are_what_the_package_writes():
    for name in hub.agent_names():
        directory = hub.packaged() / name
        _, config = hub.load_checkpoint(directory)
        evaluation, training = (
            json.loads((directory / f"{part}.json").read_text()) for part in ("evaluation", "training")
        )
        figure, video = (file if (directory / file).is_file() else None for file in ("curve.png", "replay.mp4"))
        written = model_card(config, evaluation, training, figure, video)
        assert (directory / "README.md").read_text(encoding="utf-8") == written, name


def test_a_card_names_the_split_where_it_is_not_the_agents_own(make_config):
    config = make_config()
    for split, told in ((config.split, False), ("macaw", True)):
        assert (f"--split {split}" in model_card(config, {**EVALUATION, "split": split})) == told


def test_a_card_tells_in_which_tasks_its_agent_learned(make_config):
    distilled = {"recipe": "on-policy distillation", "data": {"subset": "train+sampled:45"}}
    tuned = {"config": {"subset": "train+sampled:9"}, "start": {"training": distilled}}
    assert "`): `train+sampled:45`; sampled:N is" in model_card(make_config(), training=distilled)
    assert "`): `train+sampled:45`, then `train+sampled:9`; " in model_card(
        make_config(), training={**tuned, "update": 3}
    )
    assert "`): `train+sampled:45`; " in model_card(make_config(), training={**tuned, "update": 0})
    assert "`): `train` |" in model_card(make_config(), training={"data": {"subset": "train"}})


def test_a_card_knows_lives_in_which_tasks_change(make_config):
    changing = {"recipe": "on-policy distillation", "config": {"on_policy": {"task_changes": 0.3}}}
    tuned = {"recipe": "reinforcement", "config": {}, "start": {"training": changing}}
    late = {"recipe": "reinforcement", "config": {"task_changes": 0.3}}
    for training, told in (
        (changing, True),
        (tuned, True),
        (late, True),
        ({"config": {"on_policy": None}}, False),
        (None, False),
    ):
        assert ("tasks change without notice" in model_card(make_config(), training=training)) == told
