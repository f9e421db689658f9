"""What did a source learn? Films the final policies of a dataset at tasks of theirs, side by side, at half speed.

Sources that see the task, or what else observations hide, are told; an agent that is distilled from them is not.
"""

import argparse
import os
import sys
from pathlib import Path

if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo, which decides when imported, wants a display
import gymnasium
import imageio.v3 as imageio
import numpy as np

from icrl_agents.envs import MetaVectorEnv
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.sources.policies import SnapshotPolicies, sees_privileged
from icrl_agents.training.sources.rollouts import told

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dataset", type=Path, help="that `icrl-agents collect` made")
parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1, 2], help="which of its tasks")
parser.add_argument("--out", type=Path, default=Path("out/source.gif"))
parser.add_argument("--size", type=int, default=320, help="of a picture, in pixels")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

dataset = HistoryDataset(arguments.dataset)
if not all(0 <= k < len(dataset.manifest.tasks) for k in arguments.tasks):
    parser.error(f"--tasks: the dataset has tasks 0 to {len(dataset.manifest.tasks) - 1}")
chosen = [dataset.manifest.tasks[k] for k in arguments.tasks]
size = {"width": arguments.size, "height": arguments.size}
env = gymnasium.make_vec(
    dataset.manifest.env_id, num_envs=len(chosen), tasks=chosen, render_mode="rgb_array", **size
).unwrapped
assert isinstance(env, MetaVectorEnv)
space = env.single_action_space
policies = SnapshotPolicies(
    {name: tensor[arguments.tasks] for name, tensor in dataset.snapshot().items()}, space.low, space.high
)
observations, _ = env.reset(seed=arguments.seed)
privileged = sees_privileged(policies.seen_dim, env.definition)
frames, returns, living = [], np.zeros(len(chosen)), np.ones(len(chosen), bool)
while living.any():
    pictures = env.render()
    # An episode that is over stays at its last picture
    before = frames[-1] if frames else pictures
    frames.append([new if alive else old for new, old, alive in zip(pictures, before, living, strict=True)])
    seen = told(observations, env.privileged) if privileged else observations
    observations, rewards, terminated, truncated, _ = env.step(policies.act(seen[:, None])[:, 0])
    returns += rewards * living
    living &= ~(terminated | truncated)
arguments.out.parent.mkdir(parents=True, exist_ok=True)
film = [np.concatenate(pictures, axis=1) for pictures in frames]
imageio.imwrite(arguments.out, film, duration=1000 / env.metadata["render_fps"] * 2, loop=0)
for task, value in zip(chosen, returns, strict=True):
    print(f"{task}: return {value:.2f}")
print("film:", arguments.out)
