"""Time and memory per step over a long roll-out: flat for Mamba, whatever the length of its history."""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from icrl_agents import InContextAgent
from icrl_agents.backbones import carry_bytes

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--agents", nargs="+", default=["reacher-goal-mamba", "reacher-goal-transformer"])
parser.add_argument("--steps", type=int, default=10_000)
arguments = parser.parse_args()


def resident_bytes() -> int:
    """Memory of this process that is in RAM (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


for name in arguments.agents:
    agent = InContextAgent.from_pretrained(name)
    env = agent.make_env()
    agent.reset()
    observation, _ = env.reset(seed=0)
    seconds = np.zeros(arguments.steps)
    memory = {}
    for step in range(arguments.steps):
        started = time.perf_counter()
        action = agent.act(observation)
        seconds[step] = time.perf_counter() - started
        observation, reward, terminated, truncated, _ = env.step(action)
        agent.observe(reward, terminated, truncated)
        if terminated or truncated:
            observation, _ = env.reset()
        if step in (arguments.steps // 10, arguments.steps - 1):
            memory[step] = resident_bytes()
    carry = carry_bytes(agent.model.backbone.initial_carry(1))
    tenth = arguments.steps // 10
    early, late = (float(np.median(part)) * 1e3 for part in (seconds[tenth : 2 * tenth], seconds[-tenth:]))
    grown = memory[arguments.steps - 1] - memory[tenth]
    print(
        f"{name}: {early:.3f} ms a step early, {late:.3f} ms late (ratio {late / early:.2f}); "
        f"memory of the task {carry / 1024:.0f} KiB, the process grew by {grown / 1024:.0f} KiB after the first tenth"
    )
