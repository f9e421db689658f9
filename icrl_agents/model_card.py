"""The model card: what a checkpoint's README.md says, with Hub metadata."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from icrl_agents.config import AgentConfig

CURVE_EPISODES = (1, 2, 3, 5, 10, 20, 30, 40)
"""Episodes that the card's table shows, as far as they were measured."""

SUMMARY_ROWS = {
    "first_return": "return of the first episode",
    "final_return": "return of the last episodes",
    "first_normalized": "normalized, first episode",
    "final_normalized": "normalized, last episodes",
    "final_normalized_of_means": "normalized, last episodes, ratio of the means",
}
"""What the card quotes of an evaluation's summary, and how it calls it."""

TRAINING_NOTE = "\n`training.json` holds what reproduces it.\n"


def model_card(
    config: AgentConfig,
    evaluation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    figure: str | None = None,
    video: str | None = None,
) -> str:
    """A checkpoint's card, with YAML metadata on top.

    Args:
        config: of the checkpoint.
        evaluation: what ``icrl-agents evaluate --json`` writes: at least ``env_id``, ``split`` and
            ``returns``, one list per task with a return per episode; ``anchors``, ``normalized``, ``seeds``,
            ``summary`` and ``controls`` are shown if they are there. None: the card says that nothing was measured.
        training: what reproduces the agent; the parts of its ``recipe``, joined by " + ", become tags.
        figure: file name of the learning curve's picture, beside the card.
        video: file name of a film of the agent, likewise; the Hub shows a ``replay.mp4`` above the card, too.
    """
    # Imported on use: it takes half a second, and loading an agent from a directory needs no Hub.
    from huggingface_hub import ModelCardData

    recipe = str((training or {}).get("recipe", ""))
    data = ModelCardData(
        library_name="icrl-agents",
        license="apache-2.0",
        pipeline_tag="reinforcement-learning",
        tags=[
            "reinforcement-learning",
            "in-context-reinforcement-learning",
            *(part.replace(" ", "-") for part in recipe.split(" + ") if part),
            config.model.backbone,
            config.env_id,
        ],
        model_name=config.name,
        eval_results=None if evaluation is None else _eval_results(evaluation),
    )
    measured = "Nothing was measured yet." if evaluation is None else _measured(config, evaluation, figure)
    body = _body(config, measured, _what(config, evaluation), training or {}, video)
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def card_of_repository(card: str, name: str, repo_id: str) -> str:
    """A card whose code and command name the repository that they lie in, where they named the agent ``name``."""
    for before, after in (('from_pretrained("', '")'), ("icrl-agents evaluate ", "")):
        card = re.sub(f"{re.escape(before + name + after)}(?![\\w-])", f"{before}{repo_id}{after}", card)
    return card


def _what(config: AgentConfig, evaluation: Mapping[str, Any] | None) -> str:
    """What kind of agent it is, in a sentence that its evaluation allows."""
    if evaluation is None:
        return (
            f"An agent for `{config.env_id}` that may learn a task while it acts, with no weight update, in the memory "
            f"of its {config.model.backbone} backbone."
        )
    final = (evaluation.get("summary") or {}).get("final_normalized", {})
    if final and final.get("low", final["mean"]) <= 0:
        return (
            f"A baseline for `{config.env_id}`: on unseen tasks it is **not measurably better than a policy that sees "
            f"neither task nor reward** (normalized return {quoted(final)}, where that one has 0). Its weights stay as "
            f"they are, all it might learn is in the memory of its {config.model.backbone} backbone."
        )
    return (
        f"An agent for `{config.env_id}` that learns a task it has never seen while it acts: its weights stay as they "
        f"are, all learning happens in the memory of its {config.model.backbone} backbone."
    )


def _knows_changes(training: Mapping[str, Any]) -> bool:
    """Whether an agent, or what it was fine-tuned from, was trained on lives in which tasks change without notice."""
    config = training.get("config") or {}
    lives = config.get("on_policy") or config
    before = (training.get("start") or {}).get("training") or {}
    return bool(lives.get("task_changes")) or (bool(before) and _knows_changes(before))


def _subsets(training: Mapping[str, Any]) -> list[str]:
    """The parts of its split that an agent learned in, in the order in which it did."""
    before = (training.get("start") or {}).get("training") or {}
    if not before:
        found = [(training.get("data") or {}).get("subset")]
    else:  # fine-tuned, unless what it began with was the best
        found = [*_subsets(before), (training.get("config") or {}).get("subset") if training.get("update") else None]
    return [subset for subset in found if subset]


def _body(config: AgentConfig, measured: str, what: str, training: Mapping[str, Any], video: str | None) -> str:
    model = config.model
    told = "in one task each: call `agent.reset()` where the task changes"
    kind = "in which tasks change without notice" if _knows_changes(training) else told
    lives = f"\nIt was trained on lives {kind}.\n" if training else ""  # else nobody knows
    subsets = _subsets(training)
    tasks = f"split `{config.split}` (`{config.split_hash}`)"
    if subsets:
        tasks += ": " + ", then ".join(f"`{subset}`" for subset in subsets)
    if any("sampled" in subset for subset in subsets):
        tasks += "; sampled:N is N more of the distribution, none of them in val or test"
    film = "" if video is None else f'\n<video controls autoplay loop muted src="{video}"></video>\n'
    return f"""# {config.name}

{what}
{film}
With the package `icrl-agents` installed:

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
{lives}
## Measured

{measured}

## What it is

| | |
|---|---|
| environment | `{config.env_id}`, episodes of {config.episode_steps} steps |
| trained by | {training.get("recipe", "-")} |
| trained on | sequences of {config.training_episodes} episodes |
| tasks | {tasks} |
| physics | mujoco {config.mujoco_version} |
| backbone | {model.backbone} {dict(model.backbone_options)} |
| reads | {model.observation_dim} observation entries, {model.tokenization} tokens |
| head | {model.head} |
| sees rewards | {"no (control)" if model.mask_rewards else "yes"} |
{TRAINING_NOTE if training else ""}"""


def _measured(config: AgentConfig, evaluation: Mapping[str, Any], figure: str | None) -> str:
    """All that was measured, and the command that measures it again."""
    seeds = evaluation.get("seeds") or []
    parts = [
        "" if figure is None else f"![Return per episode on unseen tasks]({figure})",
        _curve(evaluation),
        _summary(evaluation.get("summary") or {}),
        _controls(evaluation.get("controls") or {}),
        f"Evaluation seeds: {', '.join(map(str, seeds))}." if seeds else "",
        f"To measure it again: `{_command(config, evaluation)}`.",
    ]
    return "\n\n".join(part for part in parts if part)


def _command(config: AgentConfig, evaluation: Mapping[str, Any]) -> str:
    """What measures an agent again; options are given where they are not the defaults of the command."""
    tasks, episodes = np.shape(evaluation["returns"])
    given = {
        "--split": (evaluation["split"], config.split),
        "--subset": (evaluation.get("subset", "test"), "test"),
        "--tasks": (tasks, 30),
        "--episodes": (episodes, 40),
        "--seed": (" ".join(map(str, evaluation.get("seeds") or [0])), "0"),
    }
    options = [f" {option} {value}" for option, (value, default) in given.items() if value != default]
    return f"icrl-agents evaluate {config.name}{''.join(options)}"


def _summary(summary: Mapping[str, Any]) -> str:
    """The numbers to quote, with their intervals."""
    rows = [(title, summary[key]) for key, title in SUMMARY_ROWS.items() if key in summary]
    if not rows:
        return ""
    lines = ["| over tasks; the last episodes are five | mean [95 % interval] | interquartile mean |", "|---|---|---|"]
    for title, found in rows:
        lines.append(f"| {title} | {quoted(found)} | {_iqm(found)} |")
    return "\n".join(lines)


def _controls(controls: Mapping[str, Any]) -> str:
    """What shows that it learns from its rewards, and over episodes."""
    lines = []
    if "swapped_rewards" in controls:
        found = controls["swapped_rewards"]
        lines.append(
            "- Swapped rewards: given the rewards of another task, it ends nearer to that one in "
            f"{found['nearer_to_rewarded']:.0%} of the tasks: error to the rewarded task "
            f"{quoted(found['error_to_rewarded'], 3)}, to its own {quoted(found['error_to_own'], 3)}."
        )
    if "reset_each_episode" in controls:
        summary = controls["reset_each_episode"]
        what = "normalized return" if "final_normalized" in summary else "return"
        lines.append(f"- Memory emptied at each episode: {what} {quoted(final_of(summary))}.")
    return "\n".join(["Controls, mean [95 % interval over tasks]:", "", *lines]) if lines else ""


def _iqm(found: Mapping[str, float]) -> str:
    return f"{found['iqm']:.2f}" if "iqm" in found else "-"


def quoted(found: Mapping[str, float], digits: int = 2) -> str:
    """``"mean [low, high]"``; a single task has no interval."""
    mean = f"{found['mean']:.{digits}f}"
    return f"{mean} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]" if "low" in found else mean


def final_of(summary: Mapping[str, Any]) -> Mapping[str, float]:
    """What a summary tells of the last episodes: normalized, or the return where there were no anchors."""
    found: Mapping[str, float] = summary["final_normalized" if "final_normalized" in summary else "final_return"]
    return found


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
    if evaluation.get("normalized"):
        normalized = np.asarray(evaluation["normalized"], float)
        row = " | ".join(f"{normalized[:, e - 1].mean():.2f}" for e in shown)
        lines += [f"| normalized (0 blind, 1 oracle) | {row} |"]
    anchors = evaluation.get("anchors") or {}
    if anchors:
        means = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in anchors.items())
        scale = (
            "0 is blind, which sees neither task nor reward, and 1 the oracle, which is told the task: no upper bound"
        )
        lines += ["", f"Anchors, return on the same tasks: {means}. Normalized, {scale}."]
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
