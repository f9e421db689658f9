"""A native vector environment that steps in turn with a policy's network, while idle OpenMP threads spin or sleep.

Each line is a process of its own, because libgomp reads how long its threads spin when it is loaded. The command line
tool sets ``GOMP_SPINCOUNT`` as in the second line; "physics, untouched" is the same steps with no network between them.
"""

import argparse
import os
import subprocess
import sys
import time

from icrl_agents.envs import env_ids
from icrl_agents.idle_threads import SPIN_COUNT


def measure(env_id: str, rows: int, steps: int) -> str:
    """Milliseconds of the environment's steps alone, and of those between which a network acts."""
    import gymnasium
    import numpy as np
    import torch

    env = gymnasium.make_vec(env_id, num_envs=rows, num_threads=2)
    observations, _ = env.reset(seed=0)
    torch.manual_seed(0)
    size, actions = env.single_observation_space.shape[0], env.single_action_space
    network = torch.nn.Sequential(torch.nn.Linear(size, 256), torch.nn.Tanh(), torch.nn.Linear(256, actions.shape[0]))

    def run(act: bool) -> float:
        """Median time of a step in ms; the recorded actions are the network's, so that both do the same physics."""
        nonlocal observations
        observations, _ = env.reset(seed=0)
        times = []
        for t in range(steps):
            if act:
                with torch.no_grad():
                    action = network(torch.as_tensor(observations, dtype=torch.float32)).numpy()
                recorded.append(np.clip(action, actions.low, actions.high))
            began = time.perf_counter()
            observations, *_ = env.step(recorded[t])
            times.append(time.perf_counter() - began)
        return float(np.median(times)) * 1e3

    recorded: list[np.ndarray] = []
    between = run(True)
    time.sleep(0.1)
    return f"{run(False):8.2f} {between:12.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-ids", nargs="+", default=env_ids())
    parser.add_argument("--rows", type=int, default=210)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.one, arguments.rows, arguments.steps))
        sys.exit()
    print(f"ms a step of {arguments.rows} rows{'':16} untouched  in turn with a network")
    for env_id in arguments.env_ids:
        for words, setting in (("spinning", {}), ("sleeping", {"GOMP_SPINCOUNT": str(SPIN_COUNT)})):
            sizes = ["--rows", str(arguments.rows), "--steps", str(arguments.steps)]
            other = {n: value for n, value in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
            found = subprocess.run(
                [sys.executable, __file__, "--one", env_id, *sizes],
                env=other | setting,
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"{env_id:26} {words:10} {found.stdout.rstrip()}", flush=True)
