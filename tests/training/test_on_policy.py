"""On-policy distillation: the student acts, the right teacher labels, and a killed run ends as if it had not been."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import task_split
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.model import InContextModel
from icrl_agents.training import distillation
from icrl_agents.training.distillation import DistillationConfig, TrainingResult, agent_config, train
from icrl_agents.training.histories import HistoryDataset, Manifest
from icrl_agents.training.on_policy import OnPolicyConfig, OnPolicySampler
from icrl_agents.training.windows import token_statistics

ENV_ID = "icrl/ReacherGoal-v0"
TASKS = task_split(ENV_ID).train[:3]
ROWS = 2 * len(TASKS)
TINY = {
    "mamba": {"d_model": 8, "n_layers": 1, "d_state": 4},
    "transformer": {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 16, "context_length": 12},
}
Round = dict[str, np.ndarray]


class LinearTeachers:
    """K policies that differ: ``tanh(W_k o + b_k)``."""

    seen_dim = 8

    def __init__(self, count: int = len(TASKS)) -> None:
        rng = np.random.default_rng(4)
        self._weights, self._offsets = rng.normal(size=(count, 8, 2)) / 4, rng.normal(size=(count, 1, 2)) / 2

    def __len__(self) -> int:
        return len(self._weights)

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.tanh(observations @ self._weights + self._offsets).astype(np.float32)

    def act_as(self, task: int, observations: np.ndarray) -> np.ndarray:
        """``[..., 8]`` to ``[..., 2]``: one of them, worked out apart from the others."""
        return np.tanh(observations @ self._weights[task] + self._offsets[task, 0]).astype(np.float32)

    def act_each(self, tasks: np.ndarray, observations: np.ndarray) -> np.ndarray:
        return np.array([self.act_as(task, one) for task, one in zip(tasks, observations, strict=True)]).reshape(-1, 2)


@pytest.fixture
def data(tmp_path: Path, make_dataset: Callable[..., HistoryDataset]) -> Path:
    """What only gives the tasks and the first normalisation."""
    make_dataset(tmp_path / "data", episodes=2, tasks=TASKS, streams=1, episode_steps=50)
    return tmp_path / "data"


def config(backbone: str = "mamba", on_policy: OnPolicyConfig | None = None, **changes: Any) -> DistillationConfig:
    """Six updates, two a round; rounds of one episode, then of two."""
    default = DistillationConfig(
        name="tiny",
        env_id=ENV_ID,
        backbone=backbone,
        backbone_options=TINY[backbone],
        head_hidden=8,
        keep_every=1,
        episodes=2,
        updates=6,
        batch_size=3,
        warmup=2,
        target="final_policy",
        val_fraction=0.0,
        val_episodes=0,
        validate_every=3,
        on_policy=on_policy
        or OnPolicyConfig(round_updates=2, keep_rounds=2, short_episodes=1, teacher=(0.0, 0.5), noise=(0.0, 0.2)),
    )
    return dataclasses.replace(default, **changes)


def make_sampler(
    directory: Path, manifest: Manifest, *, episodes: int = 2, updates: int = 4, **options: Any
) -> tuple[OnPolicySampler, InContextModel]:
    """A sampler whose every round is of full length, and a student."""
    student = agent_config(config(), manifest)
    torch.manual_seed(0)
    model = InContextModel(student.model)
    options = {"round_updates": 1, "short_fraction": 0.0, **options}
    sampler = OnPolicySampler(
        OnPolicyConfig(**options),
        manifest,
        student,
        LinearTeachers(),
        directory,
        updates=updates,
        batch_size=2,
        episodes=episodes,
        seed=7,
    )
    return sampler, model


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(tasks=TASKS, streams=1, episode_steps=50)


def first_round(directory: Path, manifest: Manifest, **options: Any) -> Round:
    sampler, model = make_sampler(directory, manifest, **options)
    assert sampler.prepare(1, model)
    return load_arrays(directory / "rounds/00000.safetensors")


def parts(round_: Round) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations ``[3 tasks, 2 rows, 100, 8]``, executed actions and targets ``[3, 2, 99, 2]``: the last action of a
    round is in no token."""
    tokens = round_["tokens"].reshape(3, 2, 100, 20)
    targets = round_["targets"].reshape(3, 2, 100, 2)
    return tokens[..., :8], tokens[:, :, 1:, 16:18], targets[:, :, :-1]


# ------------------------------------------------------------------ one round


def test_targets_are_the_right_teachers_actions_on_what_was_visited(tmp_path: Path, manifest: Manifest) -> None:
    round_ = first_round(tmp_path, manifest)
    assert round_["tokens"].shape == (ROWS, 100, 20)
    assert round_["targets"].shape == (ROWS, 100, 2)
    observations = round_["tokens"][..., :8].reshape(3, 2, 100, 8)
    for task in range(3):
        expected = LinearTeachers().act_as(task, observations[task])
        np.testing.assert_allclose(round_["targets"].reshape(3, 2, 100, 2)[task], expected, atol=1e-5)


@pytest.mark.parametrize("teacher", [0.0, 0.5])
def test_tokens_are_those_the_student_saw(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, teacher: float
) -> None:
    """Whoever acted: the student trains on what it will read when it acts itself."""
    seen: list[np.ndarray] = []
    step = InContextModel.step

    def spying(self: InContextModel, tokens: torch.Tensor, carry: Any, **options: Any) -> Any:
        seen.append(tokens.numpy().copy())
        return step(self, tokens, carry, **options)

    monkeypatch.setattr(InContextModel, "step", spying)
    tokens = first_round(tmp_path, manifest, teacher=(teacher,), wrong_teacher=0.3)["tokens"]
    np.testing.assert_array_equal(tokens, np.stack(seen, axis=1))
    np.testing.assert_array_equal(np.flatnonzero(tokens[0, :, 19]), [0, 50])  # where episodes start
    assert not tokens[:, 0, 8:19].any()


def test_an_agent_that_relives_a_round_acts_as_the_student_did(tmp_path: Path, manifest: Manifest) -> None:
    """Nobody but the student acts: from tokens alone, its actions follow, over the episode's end too."""
    sampler, model = make_sampler(tmp_path, manifest, teacher=(0.0,), wrong_teacher=0.0, noise=(0.0,))
    # Round 0 is acted with the statistics of before, which the sampler then replaces by the round's own
    before = model.token_mean.clone(), model.token_std.clone()
    sampler.prepare(1, model)
    tokens = load_arrays(tmp_path / "rounds/00000.safetensors")["tokens"]
    model.token_mean.copy_(before[0])
    model.token_std.copy_(before[1])
    agent = InContextAgent(model, agent_config(config(), manifest))
    agent.reset(num_envs=ROWS)
    for t in range(99):
        action = agent.act(tokens[:, t, :8])
        np.testing.assert_allclose(action, tokens[:, t + 1, 16:18], atol=1e-6)
        done = tokens[:, t + 1, 19] == 1
        agent.observe(tokens[:, t + 1, 18], done, action=action)


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_a_life_goes_on_over_rounds(tmp_path: Path, manifest: Manifest, backbone: str) -> None:
    """An agent that relives the rounds one after the other acts as the student did, and remembers what was stored;
    rows whose life was over begin anew. Sequences that begin with the stored memory continue the life."""
    lives = OnPolicyConfig(
        round_updates=1, life_rounds=3, teacher=(0.0,), wrong_teacher=0.0, noise=(0.0,), short_fraction=0.0
    )
    student = agent_config(config(backbone), manifest)
    torch.manual_seed(0)
    model = InContextModel(student.model).eval()
    sampler = OnPolicySampler(
        lives, manifest, student, LinearTeachers(), tmp_path, updates=6, batch_size=2, episodes=1, seed=7
    )
    statistics = model.token_mean.clone(), model.token_std.clone()
    rounds = []
    for number in range(6):
        sampler.prepare(number + 1, model)
        model.token_mean.copy_(statistics[0])  # as they were when round 0 was acted
        model.token_std.copy_(statistics[1])
        rounds.append(load_arrays(tmp_path / f"rounds/{number:05d}.safetensors"))
    agent = InContextAgent(model, student)
    agent.reset(num_envs=ROWS)
    ages = np.zeros(ROWS, int)
    for before, now in pairwise([None, *rounds]):
        tokens = now["tokens"]
        if before is not None:
            over = before["lives.rounds_left"] == 0
            agent.forget(over)
            ages = np.where(over, 0, ages + 1)
        np.testing.assert_array_equal(tokens[:, 0, 19], 1.0)
        np.testing.assert_array_equal(~tokens[:, 0, 8:19].any(1), ages == 0)
        for i, leaf in enumerate(pytree.tree_leaves(agent.get_state().carry)):
            np.testing.assert_allclose(now[f"carry.{i}"], leaf, atol=1e-5)
        predicted, _ = model(torch.from_numpy(tokens), carry_of(model, now))
        for t in range(50):
            action = agent.act(tokens[:, t, :8])
            np.testing.assert_allclose(action, predicted.mean[:, t].detach().clip(-1, 1), atol=1e-5)
            if t < 49:
                np.testing.assert_allclose(action, tokens[:, t + 1, 16:18], atol=1e-5)
                agent.observe(tokens[:, t + 1, 18], np.zeros(ROWS, bool), action=action)
        # what the last action brought is told by the next round, where the life goes on
        following = now["lives.tokens"]
        agent.observe(following[:, 18], np.ones(ROWS, bool), action=following[:, 16:18])
    assert ages.max() <= 2
    assert len(np.unique(ages)) > 1
    assert len(sampler.sample().memory) == sum(name.startswith("carry.") for name in rounds[0])


@pytest.mark.parametrize("backbone", ["mamba", "transformer"])
def test_a_task_that_changes_is_met_with_the_memory_of_another(
    tmp_path: Path, manifest: Manifest, backbone: str
) -> None:
    """Rows that go on have memories of other tasks, whole; those whose life is over begin anew."""
    lives = OnPolicyConfig(round_updates=1, rows_per_task=2, life_rounds=3, task_changes=0.8)
    student = agent_config(config(backbone), manifest)
    model = InContextModel(student.model).eval()
    sampler = OnPolicySampler(
        lives, manifest, student, LinearTeachers(), tmp_path, updates=6, batch_size=2, episodes=1, seed=7
    )
    rounds = []
    for number in range(6):
        sampler.prepare(number + 1, model)
        rounds.append(load_arrays(tmp_path / f"rounds/{number:05d}.safetensors"))
    changed = 0
    for before, now in pairwise(rounds):
        go_on = before["lives.rounds_left"] > 0
        parts = [name for name in now if name.startswith("carry.")]
        begun, ended = (
            np.concatenate([np.reshape(arrays[prefix + name], (len(go_on), -1)) for name in parts], axis=1)
            for arrays, prefix in ((now, ""), (before, "lives."))
        )
        came_from = [np.flatnonzero((ended == memory).all(1)).tolist() for memory in begun[go_on]]
        assert all(len(rows) == 1 and go_on[rows[0]] for rows in came_from)
        other = [rows != [own] for rows, own in zip(came_from, np.flatnonzero(go_on), strict=True)]
        tasks = [rows[0] // 2 != own // 2 for rows, own in zip(came_from, np.flatnonzero(go_on), strict=True)]
        assert other == tasks  # none has the memory of a row of its own task, but its own
        changed += sum(other)
        assert not now["tokens"][~go_on, 0, 8:19].any()  # nothing came before
        origin = [row for rows in came_from for row in rows]
        np.testing.assert_array_equal(now["tokens"][go_on, 0, 8:], before["lives.tokens"][origin, 8:])
    assert changed > 3


def carry_of(model: InContextModel, round_: Round) -> Any:
    leaves, structure = pytree.tree_flatten(model.backbone.initial_carry(1))
    return pytree.tree_unflatten([torch.from_numpy(round_[f"carry.{i}"]) for i in range(len(leaves))], structure)


def test_rewards_are_those_of_the_rows_task(tmp_path: Path, manifest: Manifest) -> None:
    """The fingertip in an observation is where the reward's was."""
    tokens = first_round(tmp_path, manifest)["tokens"].reshape(3, 2, 100, 20)
    inside = np.r_[1:50, 51:100]
    effort = np.square(tokens[:, :, inside, 16:18]).sum(-1)
    distance = -tokens[:, :, inside, 18] - effort
    for task in range(3):
        errors = [
            np.abs(distance[task] - np.hypot(*np.moveaxis(tokens[task][:, inside, 6:8] - other["goal"], -1, 0))).mean()
            for other in TASKS
        ]
        assert np.argmin(errors) == task


def test_the_teacher_may_act(tmp_path: Path, manifest: Manifest) -> None:
    _, actions, targets = parts(first_round(tmp_path, manifest, teacher=(1.0,), wrong_teacher=0.0, noise=(0.0,)))
    np.testing.assert_array_equal(actions, targets)


def test_a_wrong_teacher_is_that_of_another_task(tmp_path: Path, manifest: Manifest) -> None:
    """One for each row's episode, drawn from all others; targets stay the right one's."""
    round_ = first_round(tmp_path, manifest, wrong_teacher=1.0, noise=(0.0,))
    observations, actions, targets = parts(round_)
    acted_by = {}
    for task, row, episode in np.ndindex(3, 2, 2):
        steps = slice(0, 49) if episode == 0 else slice(50, 99)
        seen, done = observations[task, row, steps], actions[task, row, steps]
        close = [np.allclose(LinearTeachers().act_as(other, seen), done, atol=1e-5) for other in range(3)]
        assert sum(close) == 1
        acted_by[task, row, episode] = close.index(True)
    assert all(other != task for (task, _, _), other in acted_by.items())
    assert len({(other - task) % 3 for (task, _, _), other in acted_by.items()}) == 2
    assert any(acted_by[task, row, 0] != acted_by[task, row, 1] for task, row in np.ndindex(3, 2))
    for task in range(3):
        right = LinearTeachers().act_as(task, observations[task][:, :-1])
        np.testing.assert_allclose(targets[task], right, atol=1e-5)


def test_noise_is_on_what_is_executed_and_inside_the_bounds(tmp_path: Path, manifest: Manifest) -> None:
    _, actions, targets = parts(first_round(tmp_path, manifest, teacher=(1.0,), wrong_teacher=0.0, noise=(0.3,)))
    assert np.abs(actions).max() <= 1
    free = np.abs(actions) < 1
    assert (actions - targets)[free].std() == pytest.approx(0.3, rel=0.2)
    _, actions, targets = parts(
        first_round(tmp_path / "mixed", manifest, teacher=(1.0,), wrong_teacher=0.0, noise=(0.0, 0.3))
    )
    quiet = np.stack([(actions == targets)[:, :, steps].all((2, 3)) for steps in (slice(0, 50), slice(50, 99))])
    assert 0 < quiet.sum() < quiet.size  # drawn for each row and episode


def test_teachers_withdraw(tmp_path: Path, manifest: Manifest) -> None:
    """The last probability holds for all later rounds."""
    options: dict[str, Any] = {"teacher": (1.0, 0.0), "wrong_teacher": 0.0, "noise": (0.0,)}
    sampler, model = make_sampler(tmp_path, manifest, episodes=2, **options)
    for update in (1, 2, 3):
        sampler.prepare(update, model)
    shares = []
    for number in range(3):
        _, actions, targets = parts(load_arrays(tmp_path / f"rounds/{number:05d}.safetensors"))
        shares.append(float((actions == targets).mean()))
    assert shares[0] == 1
    assert max(shares[1:]) < 0.1


# ------------------------------------------------------------------ rounds and batches


def test_the_first_round_normalises(tmp_path: Path, manifest: Manifest) -> None:
    sampler, model = make_sampler(tmp_path, manifest)
    sampler.prepare(1, model)
    tokens = load_arrays(tmp_path / "rounds/00000.safetensors")["tokens"]
    mean, std = token_statistics(list(tokens), model.layout)
    np.testing.assert_array_equal(model.token_mean, mean)
    np.testing.assert_array_equal(model.token_std, std)
    sampler.prepare(2, model)
    np.testing.assert_array_equal(model.token_mean, mean)


def test_steps_count_more_that_go_on_as_they_began(tmp_path: Path, manifest: Manifest) -> None:
    """Where the teacher acted, the step before was always as labelled; where noise did, hardly."""
    shape = {"teacher": (1.0,), "wrong_teacher": 0.0, "noise": (0.0,)}
    sampler, model = make_sampler(tmp_path / "own", manifest, persistence=3.0, **shape)
    sampler.prepare(1, model)
    weights = sampler.sample().weights
    np.testing.assert_array_equal(weights[:, 0], 1)
    np.testing.assert_allclose(weights[:, 1:], 4, atol=1e-4)
    wild, model = make_sampler(tmp_path / "wild", manifest, persistence=3.0, **shape | {"noise": (5.0,)})
    wild.prepare(1, model)
    batch = wild.sample()
    difference = np.square(batch.tokens[:, 1:, 16:18] - batch.targets[:, :-1]).mean(-1)
    assert 1 < batch.weights[:, 1:].mean() < 3
    order = np.argsort(difference, axis=None)
    assert (np.diff(batch.weights[:, 1:].reshape(-1)[order]) <= 1e-6).all()  # the further off, the less


def test_batches_are_whole_rows_of_kept_rounds_of_one_length(tmp_path: Path, manifest: Manifest) -> None:
    """Rounds 0, 1 have one episode and 2, 3 have two: short sequences are twice as many a batch, and not mixed in."""
    sampler, model = make_sampler(tmp_path, manifest, short_episodes=1, short_fraction=0.5, keep_rounds=3)
    for number, (sequences, steps) in enumerate(((4, 50), (4, 50), (2, 100), (2, 100))):
        sampler.prepare(number + 1, model)
        rounds = [load_arrays(file) for file in sorted((tmp_path / "rounds").glob("*.safetensors"))]
        rows = [pair for r in rounds for pair in zip(r["tokens"], r["targets"], strict=True)]
        drawn = set()
        for _ in range(30):
            batch = sampler.sample()
            assert batch.tokens.shape == (sequences, steps, 20)
            assert batch.weights.shape == (sequences, steps)
            assert (batch.weights == 1).all()
            for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
                which = [
                    n
                    for n, (of, to) in enumerate(rows)
                    if len(of) == steps and (of == tokens).all() and (to == targets).all()
                ]
                drawn |= {which[0] // ROWS}
        assert len(drawn) == {0: 1, 1: 2, 2: 1, 3: 2}[number]  # every kept round of that length


def test_between_rounds_nothing_acts(tmp_path: Path, manifest: Manifest) -> None:
    sampler, model = make_sampler(tmp_path, manifest, updates=6, round_updates=3)
    assert [sampler.prepare(update, model) for update in range(1, 7)] == [True, False, False, True, False, False]


def test_as_many_rounds_are_kept_as_asked(tmp_path: Path, manifest: Manifest) -> None:
    sampler, model = make_sampler(tmp_path, manifest, updates=6, keep_rounds=2, short_episodes=1, short_fraction=1.0)
    for update in range(1, 7):
        sampler.prepare(update, model)
        kept = json.loads(sampler.state())["rounds"]
        assert kept == list(range(max(0, update - 2), update))
        # One file more: the state on disk may still be that of the round before
        files = [int(file.name[:5]) for file in sorted((tmp_path / "rounds").iterdir())]
        assert files == list(range(max(0, update - 3), update))


# ------------------------------------------------------------------ runs


def run(of: DistillationConfig, data: Path, out: Path, teachers: LinearTeachers | None = None) -> TrainingResult:
    of_all = teachers or LinearTeachers()
    quietly: dict[str, Any] = {"tensorboard": False, "quiet": True, "device": "cpu"}
    return train(of, data, out, of_all.act_as, teachers=of_all, **quietly)


@contextmanager
def killed_before(update: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As abrupt as it gets, nothing of ours handles it: an update that begins a round has its round, and no more."""
    do_update = distillation._Run._update

    def dying(self: Any, now: int) -> dict[str, float]:
        if now == update:
            raise SystemExit
        return do_update(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(distillation._Run, "_update", dying)
        with pytest.raises(SystemExit):
            yield


def assert_same_run(one: Path, other: Path) -> None:
    for file in ("model.safetensors", "training_state.safetensors"):
        expected, found = load_file(one / file), load_file(other / file)
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])  # after every update, or only where a round begins
@pytest.mark.parametrize("update", [1, 2, 3, 4, 6])  # 1, 3 and 5 begin a round
@pytest.mark.parametrize("life_rounds", [1, 3])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int, save_seconds: float, life_rounds: int
) -> None:
    monkeypatch.setattr(distillation, "SAVE_SECONDS", save_seconds)
    on_policy = dataclasses.replace(config().on_policy, life_rounds=life_rounds)
    run(config(on_policy=on_policy), data, tmp_path / "whole")
    with killed_before(update, monkeypatch):
        run(config(on_policy=on_policy), data, tmp_path / "killed")
    run(config(on_policy=on_policy), data, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_killed_while_the_student_acts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In round 2, after its file was written and an older one deleted, before the state was saved."""
    run(config("transformer"), data, tmp_path / "whole")
    save = distillation._Run._save

    def dying(self: Any) -> None:
        if self.state.update == 4:
            raise SystemExit
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(distillation._Run, "_save", dying)
        with pytest.raises(SystemExit):
            run(config("transformer"), data, tmp_path / "killed")
    run(config("transformer"), data, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_round_that_is_missing_on_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(distillation, "SAVE_SECONDS", 0.0)
    with killed_before(4, monkeypatch):
        run(config(), data, tmp_path / "out")
    file = tmp_path / "out/rounds/00000.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"rounds/00000\.safetensors: a round of this run is missing or damaged"):
        run(config(), data, tmp_path / "out")


def test_a_run_becomes_an_agent_of_its_recipe(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnPolicySampler, "clean_up", lambda self: None)
    result = run(config(), data, tmp_path / "out")
    assert result.best_update == 6  # nothing was validated: the last is the best
    training = json.loads((tmp_path / "out/training.json").read_text())
    assert training["recipe"] == "on-policy distillation"
    assert training["config"]["on_policy"]["keep_rounds"] == 2
    agent = InContextAgent.from_pretrained(tmp_path / "out", device="cpu")
    tokens = load_arrays(tmp_path / "out/rounds/00000.safetensors")["tokens"]
    mean, _ = token_statistics(list(tokens), agent.model.layout)
    np.testing.assert_array_equal(agent.model.token_mean, mean)


def test_a_finished_run_leaves_no_rounds_and_stays_as_it_is(data: Path, tmp_path: Path) -> None:
    first = run(config(), data, tmp_path / "out")
    assert not (tmp_path / "out/rounds").exists()
    (tmp_path / "mine/rounds").mkdir(parents=True)
    (tmp_path / "mine/rounds/own.txt").write_text("not of the run")
    run(config(), data, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine/rounds").iterdir()] == ["own.txt"]
    weights = (tmp_path / "out/model.safetensors").read_bytes()
    assert run(config(), data, tmp_path / "out") == first
    assert (tmp_path / "out/model.safetensors").read_bytes() == weights


def test_not_a_teacher_for_each_task(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="each of 3 tasks, got 2"):
        run(config(), data, tmp_path / "out", LinearTeachers(2))
    with pytest.raises(ConfigError, match="needs the final policy of every source"):
        train(config(), data, tmp_path / "out", LinearTeachers().act_as, tensorboard=False, quiet=True)


@pytest.mark.parametrize(
    "change",
    [
        {"rows_per_task": 0},
        {"round_updates": 0},
        {"keep_rounds": 0},
        {"short_episodes": 0},
        {"life_rounds": 0},
        {"teacher": ()},
        {"teacher": (1.0, 1.1)},
        {"wrong_teacher": -0.1},
        {"task_changes": 1.1, "life_rounds": 2},
        {"task_changes": 0.5},
        {"persistence": -1.0},
        {"persistence": float("inf")},
        {"noise": ()},
        {"noise": (-0.1,)},
        {"noise": (0.0, float("nan"))},
    ],
)
def test_rounds_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        OnPolicyConfig(**change)
