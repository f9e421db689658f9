"""An agent of Algorithm Distillation acts calmly; what if it explores first, as its sources did?

A class of its own adds noise to the first --explore episodes, which falls to nothing; all else is the protocol of every
published number. The noise is chosen on the val tasks and measured on the test tasks. A minute for reacher-goal.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from icrl_agents import InContextAgent, evaluate
from icrl_agents.evaluation import LAST_EPISODES, EvalResult, paired_difference
from icrl_agents.model_card import quoted
from icrl_agents.training.pipeline import EVALUATION_SEEDS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agent", default="reacher-goal-mamba-ad", help="bundled name, directory or Hub id")
parser.add_argument("--noise", type=float, nargs="+", default=[0, 0.2, 0.5, 0.8, 1.2], help="at first; 1 is a bound")
parser.add_argument("--explore", type=int, default=20, help="episodes with noise")
parser.add_argument("--episodes", type=int, default=40)
parser.add_argument("--tasks", type=int, help="of the val and test tasks; default: all")
parser.add_argument("--out", type=Path, default=Path("runs/explored"))
arguments = parser.parse_args()
arguments.out.mkdir(parents=True, exist_ok=True)


class ExploringAgent(InContextAgent):
    """Adds noise to its first actions in a task, and remembers what was executed."""

    def reset(self, *args: Any, seed: int | None = None, **options: Any) -> None:
        super().reset(*args, seed=seed, **options)
        self._episode = np.zeros(self.num_envs or 1, int)
        self._random = np.random.default_rng(seed)

    def forget(self, mask: Any = None) -> None:
        super().forget(mask)
        self._episode[slice(None) if mask is None else mask] = 0

    def act(self, obs: Any, deterministic: bool | None = None) -> np.ndarray:
        low, high = np.asarray(self.config.action_low), np.asarray(self.config.action_high)
        action = super().act(obs, deterministic)
        left = np.clip(1 - self._episode / arguments.explore, 0, 1)
        noise = self.noise * left[:, None] * high * self._random.standard_normal((len(left), len(high)))
        self._executed = np.clip(action + noise.reshape(action.shape), low, high).astype(np.float32)
        return self._executed

    def observe(self, reward: Any, terminated: Any, truncated: Any = False, *, action: Any = None) -> None:
        super().observe(reward, terminated, truncated, action=self._executed if action is None else action)
        self._episode += np.asarray(terminated) | np.asarray(truncated)


def measured(noise: float, **options: Any) -> EvalResult:
    agent.noise = noise
    return evaluate(agent, episodes=arguments.episodes, tasks=arguments.tasks, **options)


agent = ExploringAgent.from_pretrained(arguments.agent)
on_val = {noise: measured(noise, subset="val", controls=False) for noise in arguments.noise}
table = Table("noise at first", "episode 1", f"last {LAST_EPISODES}", "normalized")
for noise, result in on_val.items():
    row = (quoted(result.summary[key]) for key in ("first_return", "final_return", "final_normalized"))
    table.add_row(f"{noise:g}", *row)
Console(width=110).print("the val tasks:", table)
best = max(on_val, key=lambda noise: on_val[noise].summary["final_return"]["mean"])
on_test = {noise: measured(noise, seeds=EVALUATION_SEEDS) for noise in (0.0, best)}
for noise, result in on_test.items():
    result.save(arguments.out / f"{agent.config.name}-explored-{noise:g}.json")
    final, ratio = (quoted(result.summary[key]) for key in ("final_return", "final_normalized"))
    followed = result.controls.get("swapped_rewards", {}).get("nearer_to_rewarded", np.nan)
    print(
        f"test tasks, noise {noise:g}: {final}, normalized {ratio}, the rewards of another task followed {followed:.0%}"
    )
print(
    f"normalized, noise {best:g} minus none, paired by task: {quoted(paired_difference(on_test[best], on_test[0.0]))}"
)
