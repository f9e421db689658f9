"""Train a teacher, distil an agent from it, evaluate that on goals nobody trained on: the whole path in three calls."""

import argparse
from pathlib import Path

from icrl_agents import InContextAgent
from icrl_agents.envs import task_split
from icrl_agents.evaluation import rollout
from icrl_agents.training.pipeline import run_training
from icrl_agents.training.sources.presets import run_collection

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/own"))
parser.add_argument("--steps-per-task", type=int, help="of the teacher; default: the preset's")
parser.add_argument("--updates", type=int, help="of the agent; default: the preset's")
parser.add_argument("--episodes", type=int, default=40, help="of the evaluation")
arguments = parser.parse_args()

env_id = "icrl/ReacherGoal-v0"
teacher = run_collection(
    env_id, arguments.out / "teacher", source="task-informed", steps_per_task=arguments.steps_per_task
)
returns = teacher.manifest.progress.final_returns
print(f"the teacher, which is told the goal, returns {sum(returns) / len(returns):.2f} on {len(returns)} goals")

agent_folder = arguments.out / "agent"
run_training(
    env_id, arguments.out / "teacher", agent_folder, method="on-policy", name="own-agent", updates=arguments.updates
)

agent = InContextAgent.from_pretrained(agent_folder)
by_episode = rollout(agent, task_split(env_id).val, arguments.episodes, seed=0).returns.mean(0)
print(f"the agent on 10 unseen goals: episode 1 returns {by_episode[0]:.2f}, the last {by_episode[-1]:.2f}")
