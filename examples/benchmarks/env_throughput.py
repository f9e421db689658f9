"""The native vector environments beside the physics alone and beside Gymnasium's own, resets included.

Physics alone replays what the environment did: the same controls from the same states, in a ``mujoco.batch.Batch`` of
its own with nothing around it. All take turns at every step, and every number is a median over groups of steps.

Wall-clock ratios mean something only while as many cores are free as there are threads. On a busy machine
``--cpu-time`` counts processor time of single threads instead, which does not see the others, and says what it comes to
on that many free cores: physics divided by the threads, everything around it not.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco.batch import Batch

from icrl_agents.envs import MetaVectorEnv, env_ids

V5 = {
    "reacher.xml": "Reacher-v5",
    "pusher_v5.xml": "Pusher-v5",
    "half_cheetah.xml": "HalfCheetah-v5",
    "ant.xml": "Ant-v5",
}
PHYSICS = ("qpos", "qvel", "qacc_warmstart", "time")
PEERS = 16

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--env-ids", nargs="+", default=env_ids())
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--turns", type=int, default=20)
parser.add_argument("--steps", type=int, default=50, help="of every row, per turn")
parser.add_argument("--cpu-time", action="store_true", help="count processor time instead of wall-clock time")
arguments = parser.parse_args()
clock = time.thread_time if arguments.cpu_time else time.perf_counter


class Physics:
    """The physics of an environment and nothing else."""

    def __init__(self, env: MetaVectorEnv, threads: int) -> None:
        definition = env.definition
        model = mujoco.MjModel.from_xml_path(str(definition.model_path))
        self._batch = Batch(model, env.num_envs, nthread=threads)
        self._fields = {name: self._batch.bind(name) for name in PHYSICS}
        self._controls = self._batch.bind("ctrl")
        self._nstep = definition.frame_skip
        self._env = env
        self.follow(np.arange(env.num_envs))

    def step(self, actions: np.ndarray) -> None:
        """What cannot be saved."""
        self._controls[:] = actions
        self._batch.step(nstep=self._nstep)

    def follow(self, rows: np.ndarray) -> None:
        """Take the states of rows that the environment has reset, and check that the others are the same already."""
        state = self._env.get_state()
        for name, field in self._fields.items():
            field[rows] = state[name][rows]
            np.testing.assert_array_equal(field, state[name])


def seconds_of(step: Callable[[np.ndarray], Any], actions: np.ndarray) -> tuple[float, Any]:
    """Time in s that one step takes, and what it returns."""
    started = clock()
    result = step(actions)
    return clock() - started, result


def native(env_id: str, threads: int) -> MetaVectorEnv:
    """A vector environment under way."""
    env = gymnasium.make_vec(env_id, num_envs=arguments.rows, num_threads=threads).unwrapped
    assert isinstance(env, MetaVectorEnv)
    env.reset(seed=0)
    return env


def measure(env_id: str) -> None:
    """Print one line of the table."""
    threads = 1 if arguments.cpu_time else arguments.threads
    many, one = native(env_id, threads), native(env_id, 1)
    alone = Physics(many, threads)
    peer = gymnasium.make_vec(V5[many.definition.model_file], num_envs=PEERS, vectorization_mode="sync")
    peer.reset(seed=0)
    high = many.single_action_space.high
    rng = np.random.default_rng(0)
    turns = np.zeros((arguments.turns, 4))
    for turn in turns:
        for _ in range(arguments.steps):
            actions = rng.uniform(-high, high, many.action_space.shape).astype(np.float32)
            ours, (_, _, terminated, truncated, _) = seconds_of(many.step, actions)
            physics, _ = seconds_of(alone.step, actions)
            alone.follow(np.flatnonzero(terminated | truncated))
            v5, _ = seconds_of(peer.step, actions[:PEERS])
            single_thread, _ = seconds_of(one.step, actions)
            turn += ours, physics, v5 * arguments.rows / PEERS, single_thread
    peer.close()
    ours, physics, v5, single_thread = turns.T
    above = ours - physics
    if arguments.cpu_time:
        physics = physics / arguments.threads
        ours = physics + above
    steps = arguments.steps
    print(
        f"{env_id:24} {steps * arguments.rows / np.median(ours):10,.0f} {np.median(physics / ours):10.2f} "
        f"{np.median(above) / steps * 1e6:10.0f} {np.median(v5 / ours):14.1f} {np.median(single_thread / ours):14.2f}"
    )


kind = "processor time, for free cores" if arguments.cpu_time else "wall-clock time"
print(f"{arguments.rows} rows, {arguments.threads} threads, random actions; medians of {arguments.turns} turns; {kind}")
print(f"{'':24} {'steps/s':>10} {'/ physics':>10} {'us above':>10} {'/ v5 sync(16)':>14} {'/ one thread':>14}")
for env_id in arguments.env_ids:
    measure(env_id)
