"""Who may import whom (DESIGN, section 2), and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import icrl_agents

ROOT = Path(__file__).parents[1]
SOURCES = {
    "icrl_agents": ROOT / "icrl_agents",
    "icrl_agents.envs": ROOT / "envs",
    "icrl_agents.training": ROOT / "training",
}

ORDER = (
    "errors",
    "forks",
    "idle_threads",
    "atomic",
    "config",
    "provenance",
    "tokens",
    "wrappers",
    "sb3",
    "kernels",
    "backbones",
    "model",
    "model_card",
    "hub",
    "publishing",
    "episodes",
    "agent_state",
    "agent_inputs",
    "agent_steps",
    "agent",
    "video",
    "evaluation",
    "plots",
    "watch",
    "testing",
    "training",
    "cli_data",
    "cli_training",
    "cli_watch",
    "cli",
)
"""Each may import what stands before it; envs imports only errors, and anything may import envs."""


def modules():
    """Full name -> file of every module."""
    found = {}
    for package, directory in SOURCES.items():
        for file in sorted(directory.rglob("*.py")):
            parts = file.relative_to(directory).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = file
    return found


def imports_of(file):
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name):
    """The part of the package that a module belongs to; None if it is not ours, "" for the package itself."""
    head, _, rest = name.partition(".")
    return rest.partition(".")[0] if head == "icrl_agents" else None


MODULES = modules()


def test_the_search_sees_the_package():
    assert {"icrl_agents", "icrl_agents.agent", "icrl_agents.envs.vector", "icrl_agents.training"} <= set(MODULES)
    assert "icrl_agents.errors.InputError" in set(imports_of(MODULES["icrl_agents.agent"]))
    assert {part_of(name) for name in MODULES} - {"", "envs", "checkpoints"} <= set(ORDER)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "icrl_agents"])
def test_imports_point_one_way(name):
    part = part_of(name)
    for imported in imports_of(MODULES[name]):
        other = part_of(imported)
        if other in (None, part):
            continue
        if part in ("envs", "errors"):
            assert (part, other) == ("envs", "errors"), f"{name} imports {imported}"
        elif other not in ("envs", ""):
            assert ORDER.index(other) < ORDER.index(part), f"{name} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) == "envs"])
def test_envs_know_no_torch(name):
    allowed = {"gymnasium", "numpy", "mujoco", "icrl_agents"} | sys.stdlib_module_names
    assert {imported.partition(".")[0] for imported in imports_of(MODULES[name])} <= allowed


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def test_importing_registers_the_envs_without_torch():
    done = run(
        "import sys, gymnasium, icrl_agents\n"
        "assert 'icrl/ReacherGoal-v0' in gymnasium.registry\n"
        "icrl_agents.task_split, icrl_agents.ExperienceObservation, icrl_agents.AgentConfig\n"
        "heavy = {'torch', 'huggingface_hub', 'matplotlib', 'stable_baselines3'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


def test_an_agent_needs_no_hub_client():
    done = run(
        "import sys, icrl_agents\n"
        "icrl_agents.InContextAgent, icrl_agents.agent_names()\n"
        "assert 'torch' in sys.modules and 'huggingface_hub' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_star_gives_exactly_those():
    namespace = {}
    exec("from icrl_agents import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(icrl_agents.__all__)
    assert set(icrl_agents.__all__) <= set(dir(icrl_agents))
    assert len(icrl_agents.__all__) <= 16


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Agnet"):
        icrl_agents.Agnet  # noqa: B018
