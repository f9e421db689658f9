"""Damaged and hostile checkpoints, one after the other, in a process that may not allocate gigabytes.

Run by tests/test_checkpoint_fuzz.py as ``python checkpoint_fuzz.py CASES``. Every case ends in an agent that acts or
in an error of icrl_agents.errors; whatever else happens ends the process with another exit code than 0.
"""

import json
import resource
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from conftest import BACKBONES, tiny_agent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from icrl_agents.agent import InContextAgent
from icrl_agents.errors import IcrlError, ProvenanceWarning

SPARE = 3 * 2**29
"""Bytes of address space beyond those of a process that has loaded an agent: a memory of one GiB is allowed."""

folder = Path(tempfile.mkdtemp())
outcomes: Counter[str] = Counter()

HUGE = [0, -1, 10**6, 10**9, 2**31, 2**40, 2**63 - 1, 2**63, 2**80, 10**400]
scalars = st.one_of(
    st.integers(-3, 70),
    st.sampled_from(HUGE),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
    st.sampled_from(["mamba", "mamba2", "transformer", "element", "gaussian", "icrl/AntDir-v0", "os:Exit-v0", "auto"]),
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=3))


def places(data, at=()):
    """Where something stands in a JSON value."""
    yield at
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*at, key))


@st.composite
def changed(draw, data):
    """A JSON value with something replaced, left out or added, up to three times."""
    data = json.loads(json.dumps(data))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(sorted(places(data), key=repr)))
        if not at:
            continue
        owner = data
        for key in at[:-1]:
            owner = owner[key]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "leave out", "add"]))
        if kind == "replace":
            owner[at[-1]] = draw(values)
        elif kind == "leave out":
            del owner[at[-1]]
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=8))] = draw(values)
    return data


@st.composite
def damaged(draw, content):
    """Bytes that are cut, lengthened or changed in places."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["set", "set", "cut", "insert"]))
        at = draw(st.integers(0, max(0, min(len(content), draw(st.sampled_from([8, 400, 10**9]))) - 1)))
        if kind == "set" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 64))]
        else:
            content[at:at] = draw(st.binary(max_size=16))
    return bytes(content)


@st.composite
def safetensors(draw, content):
    """A safetensors file whose bytes are damaged, or whose header says something else and is whole otherwise."""
    kind = draw(st.sampled_from(["bytes", "header", "values"]))
    length = int.from_bytes(content[:8], "little")
    if kind == "bytes":
        return draw(damaged(content))
    if kind == "values":
        data = np.frombuffer(content[8 + length :], np.uint8).copy()
        for at in draw(st.lists(st.integers(0, len(data) - 4), max_size=6)):
            data[at : at + 4] = np.frombuffer(np.float32(draw(st.floats(width=32))).tobytes(), np.uint8)
        return content[: 8 + length] + data.tobytes()
    header = json.dumps(draw(changed(json.loads(content[8 : 8 + length])))).encode()
    return draw(st.sampled_from([len(header), 2**40, 2**63])).to_bytes(8, "little") + header + content[8 + length :]


@st.composite
def config_files(draw, content):
    """A config.json whose bytes are damaged, or that says something else."""
    kind = draw(st.sampled_from(["bytes", "fields", "fields", "fields", "fields", "deep"]))
    if kind == "bytes":
        return draw(damaged(content))
    if kind == "deep":
        depth = draw(st.sampled_from([30, 100, 900, 100_000]))
        return content.replace(b'"env_options": {}', b'"env_options": {"a": ' + b"[" * depth + b"]" * depth + b"}")
    return json.dumps(draw(changed(json.loads(content)))).encode("utf-8", "surrogatepass")


def make_originals():
    """For each backbone the files of a checkpoint and of a state."""
    originals = {}
    for backbone in BACKBONES:
        for options in ({}, {"head": "gaussian", "tokenization": "element"}):
            agent = tiny_agent(backbone, **options)
            agent.save_pretrained(folder / "original")
            agent.reset(num_envs=2, seed=0)
            live(agent)
            agent.save_state(folder / "state")
            files = {name: (folder / "original" / name).read_bytes() for name in ("config.json", "model.safetensors")}
            originals[f"{backbone} {options}"] = (files, (folder / "state").read_bytes())
    return originals


def live(agent):
    """A few steps; every action is finite and inside the bounds."""
    rows = () if agent.num_envs is None else (agent.num_envs,)
    low, high = (np.float32(bound) for bound in (agent.config.action_low, agent.config.action_high))
    if agent._state.acted:
        agent.observe(np.ones(rows), np.zeros(rows, bool))
    for _ in range(3):
        action = agent.act(np.ones((*rows, agent.config.model.observation_dim)))
        assert np.isfinite(action).all()
        assert ((low <= action) & (action <= high)).all()
        agent.observe(np.ones(rows), np.zeros(rows, bool))


def try_checkpoint(files):
    """Load, act, save."""
    directory = folder / "case"
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    try:
        agent = InContextAgent.from_pretrained(directory, device="cpu")
        live(agent)
        agent.save_pretrained(folder / "again")
        outcomes["agent that acts"] += 1
    except IcrlError as error:
        outcomes[type(error).__name__] += 1


def try_state(agent, content):
    """Load a state, act."""
    (folder / "state").write_bytes(content)
    try:
        agent.load_state(folder / "state")
        live(agent)
        outcomes["state that acts"] += 1
    except IcrlError as error:
        outcomes[f"state: {type(error).__name__}"] += 1


def main(cases):
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ProvenanceWarning)
    warnings.simplefilter("ignore", HypothesisWarning)  # of its own, that what it prints of an example is long
    originals = make_originals()
    agents = {}
    for name, (files, state) in originals.items():
        try_checkpoint(files)
        for file, content in files.items():
            (folder / "case" / file).write_bytes(content)
        agents[name] = InContextAgent.from_pretrained(folder / "case", device="cpu")
        try_state(agents[name], state)
    assert outcomes == {"agent that acts": len(originals), "state that acts": len(originals)}, outcomes
    outcomes.clear()
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + SPARE, before + SPARE))

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.data(), st.sampled_from(sorted(originals)), st.sampled_from(["config", "weights", "both", "state"]))
    def case(data, name, what):
        files, state = originals[name]
        if what == "state":
            try_state(agents[name].clone(), data.draw(safetensors(state)))
            return
        files = dict(files)
        if what != "weights":
            files["config.json"] = data.draw(config_files(files["config.json"]))
        if what != "config":
            files["model.safetensors"] = data.draw(safetensors(files["model.safetensors"]))
        try_checkpoint(files)

    case()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]))
