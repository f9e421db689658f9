"""The examples and the README's code run as they stand, in processes of their own, and say what is so."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest

from icrl_agents.agent import InContextAgent
from icrl_agents.envs import MetaEnvDefinition, sample_tasks
from icrl_agents.evaluation import rollout
from icrl_agents.hub import agent_names
from icrl_agents.training import presets
from icrl_agents.training.on_policy import OnPolicyConfig
from icrl_agents.training.sources import presets as source_presets
from icrl_agents.training.sources.ppo import PPOConfig

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("0*.py"))
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)


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
    assert [path.name[:2] for path in EXAMPLES] == ["01", "02", "03", "04"]


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


def test_distil_your_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In this process, where the presets can be made small: as they are they take most of a minute."""
    at = ("icrl/ReacherGoal-v0", "laptop")
    ppo = PPOConfig(n_steps=50, hidden=(8,))
    source = replace(source_presets._COLLECTIONS[at], streams=2, shard_steps=100, ppo=ppo)
    monkeypatch.setitem(source_presets._COLLECTIONS, at, source)  # type: ignore[arg-type]
    informed = replace(source, task_informed=True)
    monkeypatch.setitem(source_presets._TASK_INFORMED, at[0], informed)  # type: ignore[arg-type]
    monkeypatch.setitem(presets._DISTILLATION, at, replace(presets._DISTILLATION[at], val_episodes=1))
    rounds = OnPolicyConfig(rows_per_task=1, short_episodes=1)
    monkeypatch.setitem(presets._ON_POLICY, at, {**presets._ON_POLICY[at], "on_policy": rounds, "batch_size": 1})
    small = ["--out", str(tmp_path / "own"), "--steps-per-task", "200", "--updates", "1", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", ["03_distil_your_own.py", *small])
    runpy.run_path(str(example("03")), run_name="__main__")
    assert InContextAgent.from_pretrained(tmp_path / "own/agent").config.name == "own-agent"
    assert len(numbers(LEARNED, capsys.readouterr().out)) == 1


@pytest.mark.soak
def test_distil_your_own_by_the_presets(run: Callable[..., str], tmp_path: Path) -> None:
    out = run(example("03"), "--out", "own", "--steps-per-task", 5000, "--updates", 2, "--episodes", 2)
    assert "on 70 goals" in out
    assert InContextAgent.from_pretrained(tmp_path / "own/agent").config.name == "own-agent"
    assert len(numbers(LEARNED, out)) == 1


def test_your_own_meta_env(run: Callable[..., str]) -> None:
    assert "it keeps the contract; random actions return" in run(example("04"))
    assert sum(bool(line.strip()) for line in example("04").read_text(encoding="utf-8").splitlines()) < 60


def test_the_page_for_builders_shows_the_examples_code() -> None:
    page, source = (path.read_text(encoding="utf-8") for path in (ROOT / "docs/own_env.md", example("04")))
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        assert block in source
    named = set(re.findall(r"^\| `(.*?)` ", page, re.MULTILINE))
    methods = {re.sub(r"\(.*", "", name) for names in named for name in names.split("`, `")}
    assert methods == {name for name in vars(MetaEnvDefinition) if name in methods}
    assert methods >= MetaEnvDefinition.__abstractmethods__


def test_the_readme_has_code() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme(block: str, run: Callable[..., str]) -> None:
    wanted = set(re.findall(r"""from_pretrained\(["']([\w-]+)["']""", block))
    if not wanted <= set(agent_names()):
        pytest.skip(f"not bundled yet: {', '.join(sorted(wanted - set(agent_names())))}")
    assert run("-c", block)


@pytest.mark.parametrize("name", ["step_latency", "sequence_training"])
def test_benchmarks_run(name: str, run: Callable[..., str]) -> None:
    out = run(ROOT / "examples/benchmarks" / f"{name}.py", "--quick")
    assert re.search(r"^mamba2 .*\d", out, re.MULTILINE)
