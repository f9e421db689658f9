"""Does an agent get better by reinforcement? Fine-tunes one in training tasks, and compares before and after on unseen.

The default agent is distilled alone, as `icrl-agents reproduce pusher-goal` leaves it; the bundled one is fine-tuned
already. About 17 minutes on two cores. The unseen tasks are the val tasks, by which the best round is chosen: a figure
to publish wants `icrl-agents evaluate`.
"""

import argparse
from pathlib import Path

from icrl_agents import InContextAgent
from icrl_agents.evaluation import evaluate, paired_difference
from icrl_agents.plots import plot_results
from icrl_agents.training.pipeline import run_finetuning

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--agent", default="runs/pusher-goal-mamba-distilled", help="name, directory or Hub id")
parser.add_argument("--out", type=Path, default=Path("runs/fine-tuned"))
parser.add_argument("--rounds", type=int, help="default: the preset's")
parser.add_argument("--noise", type=float, help="of the actions that it tries at first; default: the preset's")
parser.add_argument("--episodes", type=int, default=40, help="of the comparison")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

result = run_finetuning(
    arguments.agent,
    arguments.out,
    name=arguments.out.name,
    rounds=arguments.rounds,
    noise=arguments.noise,
    seed=arguments.seed,
)
print(f"best in round {result.best_round}, after {result.seconds / 60:.1f} minutes")

before, after = (
    evaluate(InContextAgent.from_pretrained(name), subset="val", episodes=arguments.episodes, controls=False)
    for name in (arguments.agent, arguments.out)
)
for episode in sorted({1, min(5, arguments.episodes), arguments.episodes}):
    then, now = (sum(task[episode - 1] for task in r.returns) / len(r.returns) for r in (before, after))
    print(f"episode {episode}: before {then:.2f}, after {now:.2f}")
difference = paired_difference(after, before)
print(f"after minus before, normalized, paired by task: {difference}")
print("picture:", plot_results([before, after], arguments.out / "comparison.png"))
