"""The model card: what a checkpoint's README.md says, with Hub metadata."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from icrl_agents.config import AgentConfig

CURVE_EPISODES = (1, 2, 3, 5, 10, 20, 30, 40)
"""Episodes that the card's table shows, as far as they were measured."""


def model_card(config: AgentConfig, evaluation: Mapping[str, Any] | None = None) -> str:
    """A checkpoint's card, with YAML metadata on top.

    Args:
        config: of the checkpoint.
        evaluation: what ``icrl-agents evaluate --json`` writes: at least ``env_id``, ``split`` and
            ``returns``, one list per task with a return per episode; ``anchors`` and ``normalized`` are shown
            if they are there. None: the card says that nothing was measured.
    """
    # Imported on use: it takes half a second, and loading an agent from a directory needs no Hub.
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="icrl-agents",
        license="apache-2.0",
        pipeline_tag="reinforcement-learning",
        tags=[
            "in-context-reinforcement-learning",
            "algorithm-distillation",
            config.model.backbone,
            config.env_id,
        ],
        model_name=config.name,
        eval_results=None if evaluation is None else _eval_results(evaluation),
    )
    measured = "Nothing was measured yet." if evaluation is None else _curve(evaluation)
    return f"---\n{data.to_yaml()}\n---\n\n{_body(config, measured)}"


def _body(config: AgentConfig, measured: str) -> str:
    model = config.model
    return f"""# {config.name}

An agent for `{config.env_id}` that learns a task it has never seen while it acts: its weights stay as they
are, all learning happens in the memory of its {model.backbone} backbone.

```python
import icrl_agents

agent = icrl_agents.InContextAgent.from_pretrained("{config.name}")
env = agent.make_env()
agent.reset()
obs, _ = env.reset(seed=0)
for _ in range({config.training_episodes} * {config.episode_steps}):
    action = agent.act(obs)
    obs, reward, terminated, truncated, _ = env.step(action)
    agent.observe(reward, terminated, truncated)
    if terminated or truncated:
        obs, _ = env.reset()  # the next episode of the same task
```

## Measured

{measured}

## What it is

| | |
|---|---|
| environment | `{config.env_id}`, episodes of {config.episode_steps} steps |
| trained on | {config.training_episodes} episodes a task, split `{config.split}` (`{config.split_hash}`) |
| physics | mujoco {config.mujoco_version} |
| backbone | {model.backbone} {dict(model.backbone_options)} |
| reads | {model.observation_dim} observation entries, {model.tokenization} tokens |
| head | {model.head} |
| sees rewards | {"no (control)" if model.mask_rewards else "yes"} |

`training.json` holds what reproduces it.
"""


def _curve(evaluation: Mapping[str, Any]) -> str:
    """The table of returns per episode, over tasks."""
    returns = np.asarray(evaluation["returns"], float)  # [tasks, episodes]
    tasks, episodes = returns.shape
    shown = sorted({e for e in CURVE_EPISODES if e <= episodes} | {episodes})
    lines = [
        f"{tasks} unseen tasks ({evaluation.get('subset', 'test')} part of split `{evaluation['split']}` of "
        f"`{evaluation['env_id']}`), mean over tasks:",
        "",
        "| episode | " + " | ".join(str(e) for e in shown) + " |",
        "|---|" + "---|" * len(shown),
        "| return | " + " | ".join(f"{returns[:, e - 1].mean():.2f}" for e in shown) + " |",
    ]
    if evaluation.get("normalized") is not None:
        normalized = np.asarray(evaluation["normalized"], float)
        row = " | ".join(f"{normalized[:, e - 1].mean():.2f}" for e in shown)
        lines += [f"| normalised (0 blind, 1 oracle) | {row} |"]
    anchors = evaluation.get("anchors") or {}
    if anchors:
        means = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in anchors.items())
        lines += ["", f"Anchors, return on the same tasks: {means}."]
    return "\n".join(lines)


def _eval_results(evaluation: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    returns = np.asarray(evaluation["returns"], float)  # [tasks, episodes]
    env_id = str(evaluation["env_id"])
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="in-context reinforcement learning",
            dataset_type=env_id,
            dataset_name=env_id,
            dataset_split=str(evaluation["split"]),
            metric_type="mean_reward",
            metric_name=f"mean return of episode {episode} on unseen tasks",
            metric_value=round(float(returns[:, episode - 1].mean()), 4),
        )
        for episode in sorted({1, returns.shape[1]})
    ]
