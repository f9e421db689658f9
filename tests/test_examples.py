"""The examples and the README's code run as they stand, in processes of their own, and say what is so."""

import functools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import MetaEnvDefinition, Task, env_ids, load_anchors, sample_tasks, short_name, task_split
from icrl_agents.evaluation import EvalResult, evaluate, paired_difference, rollout
from icrl_agents.hub import agent_names, packaged
from icrl_agents.model_card import quoted
from icrl_agents.training import pipeline, presets
from icrl_agents.training.collection import CollectionConfig, collect
from icrl_agents.training.histories import History, HistoryDataset
from icrl_agents.training.on_policy import OnPolicyConfig
from icrl_agents.training.reinforcement import ReinforcementConfig
from icrl_agents.training.sources import presets as source_presets
from icrl_agents.training.sources.planned import PlannedConfig
from icrl_agents.training.sources.ppo import PPOConfig

ENV_ID = "icrl/ReacherGoal-v0"
ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def checkpoint(make_agent: Callable[..., InContextAgent], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_agent().save_pretrained(directory)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs Python in an empty folder with warnings as errors; what it printed."""

    def of(*arguments: object) -> str:
        command = [sys.executable, "-W", "error", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return of


def example(number: str) -> Path:
    return next(path for path in EXAMPLES if path.name.startswith(number))


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text, re.MULTILINE)]


def test_every_example_has_a_test() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02d}" for number in range(1, 19)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert lines[0].startswith('"""')


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs an example in this process, which has already imported what it needs, in an empty folder."""

    def of(path: Path, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return of


def test_drop_into_a_loop(checkpoint: Path, run: Callable[..., str]) -> None:
    out = run(example("01"), "--agent", checkpoint, "--episodes", 3, "--seed", 4)
    env = gymnasium.make("icrl/ReacherGoal-v0", expose_task=True)
    _, info = env.reset(seed=4)
    agent = InContextAgent.from_pretrained(checkpoint, device="cpu")
    expected = rollout(agent, [info["task"]], 3, seed=4).returns[0]
    assert numbers(r"^episode +\d+: return +(\S+)$", out) == pytest.approx(expected, abs=0.02)


def test_many_rows(checkpoint: Path, run: Callable[..., str]) -> None:
    out = run(example("02"), "--agent", checkpoint, "--rows", 3, "--episodes", 2, "--seed", 5)
    agent = InContextAgent.from_pretrained(checkpoint, device="cpu")
    tasks = sample_tasks(agent.config.env_id, 3, 5)
    expected = rollout(agent, tasks, 2, seed=5).returns.mean(0)
    assert numbers(r"^episode \d+: mean return over rows +(\S+)$", out) == pytest.approx(expected, abs=0.02)
    assert "steps/s" in out


LEARNED = r"^the agent on 10 unseen goals: episode 1 returns (-\d+\.\d\d), the last -\d+\.\d\d$"


@pytest.fixture
def small_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process the presets can be made small: as they are an update takes most of a minute."""
    at = ("icrl/ReacherGoal-v0", "laptop")
    ppo = PPOConfig(n_steps=50, hidden=(8,))
    source = replace(source_presets._COLLECTIONS[at], streams=2, shard_steps=100, ppo=ppo)
    monkeypatch.setitem(source_presets._COLLECTIONS, at, source)  # type: ignore[arg-type]
    informed = replace(source, task_informed=True)
    monkeypatch.setitem(source_presets._TASK_INFORMED, at[0], informed)  # type: ignore[arg-type]
    monkeypatch.setitem(source_presets._PLANNED, at[0], source)  # type: ignore[arg-type]
    few = functools.partial(PlannedConfig, rounds=1, plans=20, updates=2, hidden=(8,))
    monkeypatch.setattr(source_presets, "PlannedConfig", few)
    monkeypatch.setitem(presets._DISTILLATION, at, replace(presets._DISTILLATION[at], val_episodes=1))
    rounds = OnPolicyConfig(rows_per_task=1, short_episodes=1)
    monkeypatch.setitem(presets._ON_POLICY, at, {**presets._ON_POLICY[at], "on_policy": rounds, "batch_size": 1})


@pytest.mark.usefixtures("small_presets")
def test_distil_your_own(run_here: Callable[..., str], tmp_path: Path) -> None:
    out = run_here(example("03"), "--out", "own", "--steps-per-task", 200, "--updates", 1, "--episodes", 2)
    assert InContextAgent.from_pretrained(tmp_path / "own/agent").config.name == "own-agent"
    assert len(numbers(LEARNED, out)) == 1


@pytest.mark.soak
def test_distil_your_own_by_the_presets(run: Callable[..., str], tmp_path: Path) -> None:
    out = run(example("03"), "--out", "own", "--steps-per-task", 5000, "--updates", 2, "--episodes", 2)
    assert "on 210 goals" in out
    assert InContextAgent.from_pretrained(tmp_path / "own/agent").config.name == "own-agent"
    assert len(numbers(LEARNED, out)) == 1


def test_your_own_meta_env(run: Callable[..., str]) -> None:
    assert "it keeps the contract; random actions return" in run(example("04"))
    assert sum(bool(line.strip()) for line in example("04").read_text(encoding="utf-8").splitlines()) < 60


def test_stable_baselines3(checkpoint: Path, run_here: Callable[..., str]) -> None:
    out = run_here(example("05"), "--agent", checkpoint, "--tasks", 2, "--episodes", 3, "--seed", 1)
    by_episode = numbers(r"^episode \d: mean return over 2 tasks +(\S+)$", out)
    assert len(by_episode) == 3
    (overall,) = numbers(r"^all rows at once, over all episodes: (\S+) ", out)
    assert overall == pytest.approx(sum(by_episode) / 3, abs=2.0)  # of other initial states


def test_compare_backbones(
    make_agent: Callable[..., InContextAgent], run_here: Callable[..., str], tmp_path: Path
) -> None:
    for backbone in ("mamba", "transformer"):
        make_agent(backbone).save_pretrained(tmp_path / backbone)
    small = ["--tasks", 3, "--episodes", 2, "--lived", 20, 30]
    out = run_here(example("06"), "--agents", "mamba", "transformer", *small, "--out", "figure.png")
    assert "3 unseen tasks" in out
    for row in ("episodes to 90 %", "episode 1, reward of step 49", "last, goal[1]", "step after 30 steps", "memory"):
        assert row in out
    assert re.search(r"tiny-mamba minus tiny-transformer, normalized, paired by task: \{'mean': ", out)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak
def test_context_length(run_here: Callable[..., str], tmp_path: Path) -> None:
    small = ["--steps-per-task", 5_000, "--updates", 1, "--contexts", 1, 2, "--tokens", 1_000, "--episodes", 5]
    out = run_here(example("07"), "--out", "context", *small)
    assert len(numbers(r"^(?:mamba|transformer) of context \d+: episode 1 returns (\S+),", out)) == 4
    agent = InContextAgent.from_pretrained(tmp_path / "context/transformer-2")
    assert agent.config.model.backbone_options["context_length"] == 100
    returns = json.loads((tmp_path / "context/context.json").read_text())["returns"]
    found = {backbone: list(curves) for backbone, curves in returns.items()}
    assert found == {"mamba": ["1", "2"], "transformer": ["1", "2"]}
    assert (tmp_path / "context/context.png").read_bytes().startswith(b"\x89PNG")


def test_context_length_keeps_what_earlier_calls_found(
    checkpoint: Path, run_here: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "run_training", lambda env_id, data, out, **_: shutil.copytree(checkpoint, out))
    small = [example("07"), "--data", "none", "--out", "context", "--episodes", 5]
    run_here(*small, "--contexts", 3, 1, "--backbones", "mamba")
    run_here(*small, "--contexts", 2, "--backbones", "transformer")
    returns = json.loads((tmp_path / "context/context.json").read_text())["returns"]
    assert {backbone: sorted(curves) for backbone, curves in returns.items()} == {
        "mamba": ["1", "3"],
        "transformer": ["2"],
    }
    with pytest.raises(SystemExit, match=r"'seed': '0'.*not of.*'seed': '1'.*choose another --out"):
        run_here(*small, "--seed", 1)


def test_demonstrations(checkpoint: Path, run_here: Callable[..., str]) -> None:
    small = ["--agent", checkpoint, "--tasks", 3, "--expert-episodes", 2, "--demonstrations", 1, "--episodes", 2]
    out = run_here(example("08"), *small)
    assert re.search(r"^the expert: episode 1 -\d+\.\d\d; the 1 episodes it shows -", out)
    assert len(numbers(r"^episode +\d: alone +(\S+), after them +-\d", out)) == 2


def test_own_backbone(run: Callable[..., str]) -> None:
    out = run(example("09"))  # a process of its own: what is registered stays
    assert "it keeps the contract" in out
    assert numbers(r"^an episode of a GRU returns (\S+)$", out)[0] < 0


def test_sb3_logs(run_here: Callable[..., str], tmp_path: Path) -> None:
    small = ["--tasks", 2, "--steps", 1_000, "--streams", 2, "--updates", 1, "--episodes", 1]
    command = (example("10"), "--out", "logs", *small)
    out = run_here(*command)
    assert "2 runs recorded; their final policies return -" in out
    dataset = HistoryDataset(tmp_path / "logs/data")
    assert [dataset.task(h) for h in range(4)] == [task for task in task_split(ENV_ID).train[:2] for _ in range(2)]
    assert [len(dataset.history(h).returns) for h in range(4)] == [10] * 4
    assert dataset.manifest.source == "my PPO"
    assert len(numbers(r"^the agent on unseen goals: episode 1 returns (\S+), the last", out)) == 1
    assert run_here(*command).splitlines()[0] == out.splitlines()[0]  # the data is there already


def test_own_source(run_here: Callable[..., str], tmp_path: Path) -> None:
    small = ["--tasks", 2, "--streams", 2, "--source-episodes", 6, "--updates", 1, "--episodes", 1]
    out = run_here(example("11"), "--out", "own", *small)
    assert "2 tasks; in its last episodes the source returns -" in out
    history = HistoryDataset(tmp_path / "own/data").history(3)
    assert history.actions.shape == history.mean_actions.shape == (300, 2)
    assert (history.actions != history.mean_actions).any()
    assert len(numbers(r"^the agent on unseen goals: episode 1 returns (\S+), the last", out)) == 1


def test_film_a_source(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    ppo = PPOConfig(n_steps=50, hidden=(8,))
    config = CollectionConfig(
        "icrl/PusherGoal-v0",
        subset="val",
        steps_per_task=50,
        streams=1,
        shard_steps=50,
        task_informed=True,
        privileged=True,
        ppo=ppo,
    )
    dataset = collect(config, tmp_path / "data", quiet=True)
    out = run(example("12"), tmp_path / "data", "--tasks", 1, 2, "--size", 48, "--out", "film.gif")
    returns = numbers(r"^\{'object': .*\}: return (\S+)$", out)
    assert returns == pytest.approx(dataset.manifest.progress.final_returns[1:3], rel=0.1)
    frames = imageio.imread(tmp_path / "film.gif", index=None)
    assert frames.shape[1:3] == (48, 96)
    assert (frames[:, :, :48] != frames[:, :, 48:]).any()  # the two have their objects elsewhere


def test_the_page_for_builders_shows_the_examples_code() -> None:
    page, source = (path.read_text(encoding="utf-8") for path in (ROOT / "docs/own_env.md", example("04")))
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        assert block in source
    named = set(re.findall(r"^\| `(.*?)` ", page, re.MULTILINE))
    methods = {re.sub(r"\(.*", "", name) for names in named for name in names.split("`, `")}
    assert methods == {name for name in vars(MetaEnvDefinition) if name in methods}
    assert methods >= MetaEnvDefinition.__abstractmethods__


def test_readme(run: Callable[..., str]) -> None:
    """Its loop prints what it says."""
    [block] = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    told, printed = (numbers(r"^ *episode \d: return (\S+)$", text) for text in (README, run("-c", block)))
    assert len(told) == 5
    assert printed == pytest.approx(told, abs=0.05)  # kernels round differently


@pytest.mark.parametrize("name", ["step_latency", "sequence_training"])
def test_benchmarks_run(name: str, run: Callable[..., str]) -> None:
    out = run(ROOT / "examples/benchmarks" / f"{name}.py", "--quick")
    assert re.search(r"^mamba2 .*\d", out, re.MULTILINE)


def test_idle_threads_are_compared(run: Callable[..., str]) -> None:
    out = run(ROOT / "examples/benchmarks/idle_threads.py", "--env-ids", env_ids()[0], "--rows", "4", "--steps", "3")
    assert re.findall(r"(spinning|sleeping) +[\d.]+ +[\d.]+$", out, re.MULTILINE) == ["spinning", "sleeping"]


def test_the_planner_is_better_than_any_agent(run: Callable[..., str]) -> None:
    script = ROOT / "examples/benchmarks/reacher_optimum.py"
    out = run(script, "--agents", "reacher-goal-mamba", "--episodes", "10")
    planner, agent, oracle = numbers(r"│ +(-\d\.\d{3}) +│", out)
    assert planner > max(agent, oracle)


def test_what_agents_cost_is_measured(run: Callable[..., str], tmp_path: Path) -> None:
    script, picture = ROOT / "examples/benchmarks/agent_latency.py", tmp_path / "latency.png"
    out = run(script, "--lived", "5", "--turns", "1", "--steps", "5", "--out", picture)
    assert set(re.findall(r"^([\w-]+) +\d+ us", out, re.MULTILINE)) == set(agent_names())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sources_are_compared(run: Callable[..., str], tmp_path: Path) -> None:
    script, picture = ROOT / "examples/benchmarks/source_agreement.py", tmp_path / "agreement.png"
    out = run(script, "--quick", "--algorithms", "ppo", "--out", picture)
    assert re.search(r"^ppo +task-parallel .*\d", out, re.MULTILINE)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_results_are_redrawn_from_the_raw_ones(run_here: Callable[..., str], tmp_path: Path) -> None:
    others = ROOT / "docs/results"
    out = run_here(ROOT / "examples/results.py", "--others", others, "--out", tmp_path / "figures")
    for name in ("reacher-goal.png", "reacher-goal-by-task.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
    raw = EvalResult.load(packaged() / "reacher-goal-mamba" / "evaluation.json")
    printed = [line for line in out.splitlines() if line.startswith("| `")]
    returns, controls = (line for line in printed if line.startswith("| `reacher-goal-mamba` |"))
    assert f"{np.asarray(raw.returns)[:, -5:].mean():.2f} [" in returns
    assert f"| {raw.controls['swapped_rewards']['nearer_to_rewarded'] * 30:.0f} of 30 |" in controls
    readme, measured = (
        (ROOT / page).read_text(encoding="utf-8").splitlines() for page in ("README.md", "docs/measured.md")
    )
    told = [line for line in measured if line.startswith("| `") and re.search(r"-(mamba|transformer)[`-]", line)]
    assert set(told) <= set(printed)  # no row that the script does not print
    rows = [line for line in readme if line.startswith("| `") and re.search(r"-(mamba|transformer)[`-]", line)]
    assert set(rows) <= set(told)
    assert len(rows) == sum("-ad" not in name for name in agent_names())
    for path in packaged().glob("*/evaluation.json"):
        assert sum(line.startswith(f"| `{path.parent.name}` |") for line in told) == 2  # returns and controls
    for env_id in dict.fromkeys(EvalResult.load(path).env_id for path in packaged().glob("*/evaluation.json")):
        name = short_name(env_id)
        found = re.search(rf"^{name}-mamba minus {name}-transformer, paired by task: (.*)$", out, re.MULTILINE)
        assert found is not None
        assert f"| {found[1]} |" in "\n".join(measured)
    survived = re.findall(r"^(\S+), last episodes \| steps \| .*: (.*)$", out, re.MULTILINE)
    assert len(survived) == sum(name.startswith("ant-dir") for name in agent_names())
    assert all(f"| {name} | {row} |" in measured for name, row in survived)
    distilled = re.findall(r"^\S+-ad(?:-gaussian)?, episode 1 / 10 / 40 \| normalized: (.*\])", out, re.MULTILINE)
    bundled = sum("-ad" in name for name in agent_names())
    assert len(distilled) == bundled + sum(path.stem.endswith(("-ad", "-ad-gaussian")) for path in others.iterdir())
    assert all(f"| {learned} |" in "\n".join(measured) for learned in distilled)


def test_the_log_tells_what_each_option_gave() -> None:
    log = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs/results/options").glob("*/*.json"):
        of_test = "(test " if path.parent.name.endswith("-test") else ""
        normalized = f"{of_test}{quoted(EvalResult.load(path).summary['final_normalized'])}"
        assert re.search(rf"^\| `{path.stem}`.*{re.escape(normalized)}", log, re.MULTILINE)


def test_fine_tune(
    checkpoint: Path, run_here: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = ReinforcementConfig(
        "", ENV_ID, subset="sampled:2", episodes=1, critic_rounds=1, critic_hidden=(4,), val_episodes=1
    )
    monkeypatch.setitem(presets._REINFORCEMENT, ENV_ID, small)
    out = run_here(example("13"), "--agent", checkpoint, "--out", "tuned", "--rounds", 2, "--episodes", 2)
    assert re.search(r"^best in round [02], after 0\.\d minutes$", out, re.MULTILINE)
    before = rollout(InContextAgent.from_pretrained(checkpoint), task_split(ENV_ID).val, 2, seed=0).returns.mean(0)
    assert numbers(r"^episode \d: before (\S+),", out) == pytest.approx(before, abs=0.02)
    assert re.search(r"^after minus before, normalized, paired by task: \{'mean': ", out, re.MULTILINE)
    assert (tmp_path / "tuned/comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small_presets")
@pytest.mark.parametrize("method", ["ad", "on-policy"])
def test_training_seeds(method: str, run_here: Callable[..., str], tmp_path: Path) -> None:
    small = ["--steps-per-task", 200, "--updates", 1, "--seeds", 3, 4, "--tasks", 2, "--episodes", 2]
    out = run_here(example("14"), "--env", "reacher-goal", "--method", method, "--out", "seeds", *small)
    finals = {}
    for backbone in ("mamba", "transformer"):
        for seed in (3, 4):
            training = json.loads((tmp_path / f"seeds/{backbone}-{seed}/training.json").read_text())
            assert training["config"]["seed"] == seed
            assert (training["config"]["on_policy"] is None) == (method == "ad")
            result = EvalResult.load(tmp_path / f"seeds/{backbone}-{seed}.json")
            finals[backbone, seed] = np.mean(result.normalized)  # two episodes are all of the last five
    gaps = [finals["mamba", seed] - finals["transformer", seed] for seed in (3, 4)]
    assert numbers(r"by seed: (\S+), ", out) == pytest.approx(gaps[:1], abs=1e-3)
    found = json.loads((tmp_path / "seeds/seeds.json").read_text())["differences"]["transformer"]
    assert found["mean"] == pytest.approx(np.mean(gaps))
    assert (tmp_path / "seeds/seeds.png").read_bytes().startswith(b"\x89PNG")


def test_shown_a_history(run_here: Callable[..., str], tmp_path: Path) -> None:
    small = ["--steps-per-task", 5000, "--keep-every", 4, "--parts", 0, 0.5, 1, "--episodes", 1]
    out = run_here(example("15"), "--out", "shown", *small)
    found = json.loads((tmp_path / "shown/shown.json").read_text())
    data = HistoryDataset(tmp_path / "shown/histories")
    agent = InContextAgent.from_pretrained("reacher-goal-mamba-ad")

    def after(settings: Task, shown: History | None) -> float:
        agent.reset()
        if shown is not None:
            agent.prefill(shown)
        record = agent.run_episodes(agent.make_env(task=settings), 1, seed=0, remember=True)
        return float(record.returns[0])

    tasks = data.manifest.tasks
    assert list(tasks) == list(task_split(ENV_ID).val)
    histories = [next(h for h in range(len(data)) if data.task_index(h) == task) for task in range(len(tasks))]
    shown = [data.history(h, [3, 7, 11, 15, 19]) for h in histories]
    halves = [data.history(h, [3, 7]) for h in histories]  # of 2.5 episodes
    for task in (0, 9):
        own = [after(tasks[task], part) for part in (None, halves[task], shown[task])]
        np.testing.assert_allclose(np.ravel(found["its history"][task]), own, rtol=1e-4)
        assert found["another task's history"][task][2] == [
            pytest.approx(after(tasks[task], shown[(task + 1) % 10]), rel=1e-4)
        ]
        flat = replace(shown[task], rewards=np.full_like(shown[task].rewards, shown[task].rewards.mean()))
        assert found["its history without rewards"][task][2] == [pytest.approx(after(tasks[task], flat), rel=1e-4)]
        assert found["source"][task] == pytest.approx(shown[task].returns[[0, 2, 4]])
    means = [
        f"{np.mean([episodes[2][0] for episodes in found[of]]):.2f}"
        for of in ("its history", "its history without rewards")
    ]
    assert re.search(rf"100% .* {means[0]} .* {means[1]} ", out)
    assert (tmp_path / "shown/shown.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        run_here(example("15"), "--agent", "pusher-goal-mamba", "--out", "never")
    assert not (tmp_path / "never/histories").exists()  # it says so before it collects


def test_explore_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--tasks", "2", "--explore", "2", "--episodes", "3", "--noise", "0.5", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["16", *small])
    exploring = runpy.run_path(str(example("16")))["agent"]
    out = capsys.readouterr().out
    calm, noisy = (EvalResult.load(tmp_path / f"reacher-goal-mamba-ad-explored-{noise}.json") for noise in ("0", "0.5"))
    agent = InContextAgent.from_pretrained("reacher-goal-mamba-ad")
    assert calm.returns == evaluate(agent, tasks=2, episodes=3, seeds=(0, 1, 2)).returns
    assert np.mean(noisy.returns, 0)[0] < np.mean(calm.returns, 0)[0] - 5  # noise costs
    assert np.mean(noisy.returns, 0)[2] > np.mean(noisy.returns, 0)[0] + 5  # and ends
    assert noisy.controls["reset_each_episode"]["final_return"]["mean"] < np.mean(noisy.returns, 0)[2] - 5
    assert len(re.findall(r"^test tasks, noise ", out, re.MULTILINE)) == 2
    difference = paired_difference(noisy, calm)["mean"]
    assert numbers(r"paired by task: (\S+) \[", out) == pytest.approx([difference], abs=0.01)
    exploring.noise = 0.5
    for each in (exploring, agent):
        each.reset(num_envs=2, seed=0)
    executed, meant = exploring.act(np.zeros((2, 8))), agent.act(np.zeros((2, 8)))
    assert np.abs(executed - meant).min() > 1e-3
    exploring.observe(np.zeros(2), np.zeros(2, bool))
    remembered = exploring.get_state().tokens[:, exploring.model.layout.previous_action]
    np.testing.assert_array_equal(remembered, executed)


@pytest.mark.usefixtures("small_presets")
def test_options_of_distillation(run_here: Callable[..., str], tmp_path: Path) -> None:
    options = {
        "paper": {"target": "sampled", "head": "deterministic", "episodes": 40, "batch_size": 16},
        "others-gaussian-source-mean": {"target": "source_mean", "head": "gaussian", "episodes": 40, "batch_size": 16},
        "teachers-act": {"target": "final_policy", "episodes": 10, "batch_size": 64},
    }
    small = [example("17"), "--steps-per-task", 400, "--updates", 1, "--seed", 5, "--out", "options"]
    out = run_here(*small, "--only", *options)
    runs = tmp_path / "options"
    for option, expected in options.items():
        config = json.loads((runs / option / "training.json").read_text())["config"]
        assert {name: config[name] for name in expected} == expected
        assert (config["updates"], config["seed"]) == (1, 5)
    assert (config["on_policy"]["teacher"], config["on_policy"]["wrong_teacher"]) == ([1.0], 0.5)  # the last one's
    made = HistoryDataset(runs / "others").manifest
    assert made.hyperparameters["parent"]["digest"] == HistoryDataset(runs / "histories").manifest.digest()
    assert made.hyperparameters["wrong_experts"] == 0.5
    agent = InContextAgent.from_pretrained(runs / "teachers-act")
    result = EvalResult.load(runs / "teachers-act.json")
    assert result.returns == evaluate(agent, subset="val").returns
    assert numbers(r"^. teachers-act +\S (\S+) ", out) == [
        pytest.approx(result.summary["first_return"]["mean"], abs=0.1)
    ]
    with pytest.raises(SystemExit):
        run_here(*small, "--only", "paper", "unheard-of")


def test_the_task_changes(run_here: Callable[..., str], tmp_path: Path) -> None:
    agents = ["reacher-goal-transformer", "reacher-goal-mamba"]
    out = run_here(example("18"), "--agents", *agents, "--before", 2, "--episodes", 3, "--out", "changes.png")
    tasks, anchors = task_split(ENV_ID).val, load_anchors(ENV_ID, "paper").of("val")
    blind, oracle = (np.roll(anchors[of], -1) for of in ("blind", "oracle"))
    agent = InContextAgent.from_pretrained("reacher-goal-transformer")
    env = agent.make_vec_env(10, tasks=tasks)
    lived = {}
    for told in ("no", "yes"):
        env.unwrapped.set_tasks(tasks)
        agent.run_episodes(env, 2, seed=0)
        env.unwrapped.set_tasks([*tasks[1:], tasks[0]])
        if told == "yes":
            agent.reset(env=env)
        returns = agent.run_episodes(env, 3, seed=1, remember=True).returns
        lived[told] = ((returns - blind[:, None]) / (oracle - blind)[:, None]).mean(0)
        shown = numbers(rf"^. reacher-goal-transformer +. {told} +. \S+ +. \S+ +. (\S+) ", out)
        assert shown == pytest.approx([lived[told][2]], abs=0.006)
    assert lived["no"][2] < lived["yes"][2] - 0.5  # whoever is not told goes on in the old task
    [noticed] = numbers(r"^. reacher-goal-mamba +. no +. \S+ +. \S+ +. (\S+) ", out)
    assert noticed > lived["no"][2] + 0.5
    assert (tmp_path / "changes.png").read_bytes().startswith(b"\x89PNG")
