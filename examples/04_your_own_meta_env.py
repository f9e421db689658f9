"""A meta-environment of your own: a snake swims, and finds out by itself in which direction it should."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from icrl_agents.envs import MetaEnv, MetaEnvDefinition, MetaVectorEnv, register_meta_env, register_split, sample_tasks
from icrl_agents.envs.markers import TARGET, arrow
from icrl_agents.errors import TaskError
from icrl_agents.testing import check_meta_env


class SwimmerDirDefinition(MetaEnvDefinition):
    env_id, model_file = "own/SwimmerDir-v0", "swimmer.xml"  # physics of Gymnasium's Swimmer-v5
    frame_skip, horizon, observation_dim, render_fps = 4, 200, 8, 25
    camera: Mapping[str, Any] = {"trackbodyid": 1, "distance": 4.0, "elevation": -60.0, "lookat": np.zeros(3)}
    task_keys: Mapping[str, int] = {"direction": 1}

    def sample_task(self, rng):
        return {"direction": rng.uniform(0, 2 * np.pi)}

    def check_numbers(self, numbers):
        if not 0 <= numbers[0] < 2 * np.pi:
            raise TaskError(f"a direction lies in [0, 2 pi), got {numbers[0]}")

    def initial_state(self, init_qpos, init_qvel, rng):
        return init_qpos + rng.uniform(-0.1, 0.1, 5), init_qvel + rng.uniform(-0.1, 0.1, 5)

    def observe(self, state):
        return np.concatenate([state.qpos[:, 2:], state.qvel], axis=1)  # neither where it is nor where it should go

    def remember(self, state):
        return state.qpos[:, :2].copy()

    def reward(self, before, state, action, tasks):
        velocity = (state.qpos[:, :2] - before) / 0.04  # m/s
        forward = velocity[:, 0] * np.cos(tasks[:, 0]) + velocity[:, 1] * np.sin(tasks[:, 0])
        control = -1e-4 * (action[:, 0] ** 2 + action[:, 1] ** 2)
        return forward + control, {"reward_forward": forward, "reward_ctrl": control}

    def task_error(self, parts, tasks):
        return -np.nanmean(parts["reward_forward"], axis=1)

    def task_markers(self, state, row, task):
        return [arrow(state.xpos[row, 1], np.array([np.cos(task[0]), np.sin(task[0]), 0.0]), 0.8, 0.03, TARGET)]


class SwimmerDirEnv(MetaEnv):
    definition = SwimmerDirDefinition()


class SwimmerDirVectorEnv(MetaVectorEnv):
    definition = SwimmerDirEnv.definition


register_meta_env("own/SwimmerDir-v0", f"{__name__}:SwimmerDirEnv", f"{__name__}:SwimmerDirVectorEnv", horizon=200)
tasks = sample_tasks("own/SwimmerDir-v0", 104, seed=0)
register_split("own/SwimmerDir-v0", "mine", train=tasks[:64], val=tasks[64:74], test=tasks[74:])

if __name__ == "__main__":
    check_meta_env("own/SwimmerDir-v0")
    env = gymnasium.make_vec("own/SwimmerDir-v0", num_envs=64)
    env.reset(seed=0)  # draws 64 directions
    env.action_space.seed(0)
    total = sum(env.step(env.action_space.sample())[1].mean() for _ in range(200))
    print(f"it keeps the contract; random actions return {total:.2f} on average over 64 directions")
