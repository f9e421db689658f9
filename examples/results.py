"""Redraw every figure and table of the pretrained agents from the raw results beside their checkpoints, in seconds.

The return per episode in all environments (the paper's Figure 1). For each environment the return per episode and the
reward inside the first, the normalized return of the last episodes task by task, and the paired difference of the
agents. And the rows of the tables of docs/measured.md, returns and controls, also of what else was measured: masked
agents, other splits, long lives.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from icrl_agents.envs import env_definition, short_name
from icrl_agents.evaluation import LAST_EPISODES, EvalResult, paired_difference
from icrl_agents.hub import load_checkpoint, packaged
from icrl_agents.model_card import quoted
from icrl_agents.plots import plot_environments, plot_results

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--checkpoints", type=Path, default=packaged(), help="folder of folders with an evaluation.json")
parser.add_argument("--others", type=Path, default=Path("docs/results"), help="folder of other results' JSON")
parser.add_argument("--out", type=Path, default=Path("docs/images"))
arguments = parser.parse_args()


def by_task(results: list[EvalResult], path: Path) -> None:
    """The last episodes' normalized return, 0 blind and 1 the oracle, against each number of the task."""
    definition = env_definition(results[0].env_id)
    numbers = np.stack([definition.task_numbers(task) for task in results[0].tasks])  # [N, m]
    labels = [f"{key}[{i}]" if size > 1 else key for key, size in definition.task_keys.items() for i in range(size)]
    figure = Figure(figsize=(max(6, 4 * len(labels)), 3.8), layout="constrained", dpi=130)
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for panel, label, column in zip(panels, labels, numbers.T, strict=True):
        for result in results:
            last = np.asarray(result.normalized)[:, -LAST_EPISODES:].mean(1)
            panel.plot(column, last, "o", alpha=0.7, label=result.agent)
        panel.axhline(1, color="#555555", ls="--", lw=1)
        panel.axhline(0, color="#555555", ls="-.", lw=1)
        panel.set(xlabel=label, ylabel="normalized return, last episodes")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def digits(size: float) -> int:
    """Decimals that a return of that size is told with."""
    return 0 if size >= 100 else 1 if size >= 10 else 2


def table_row(name: str, result: EvalResult, parameters: int | None = None) -> str:
    """As the table of returns has it."""
    s = result.summary
    places = digits(abs(s["final_return"]["mean"]))
    returns = [quoted(s[key], places) for key in ("first_return", "final_return")]
    ratios = [quoted(s[key]) for key in ("final_normalized_of_means", "final_normalized")]
    count = [] if parameters is None else [f"{parameters:,}"]
    return "| " + " | ".join([f"`{name}`", *count, *returns, *ratios, f"{s['final_normalized']['iqm']:.2f}"]) + " |"


def learning(result: EvalResult) -> str:
    """Mean returns in episodes 1, 10 and 40, and normalized, as the table of Algorithm Distillation has them."""
    returns = np.mean(result.returns, 0)[[0, 9, 39]]
    curve = " / ".join(f"{value:.{digits(np.max(np.abs(returns)))}f}" for value in returns)
    return f"{curve} | {quoted(result.summary['final_normalized'])}"


def control_row(name: str, result: EvalResult) -> str:
    """As the table of controls has it: acting on one task with the rewards of another; forgetting."""
    swapped = result.controls["swapped_rewards"]
    followed = f"{swapped['nearer_to_rewarded'] * len(result.tasks):.0f} of {len(result.tasks)}"
    errors = [f"{swapped[key]['mean']:#.2g}" for key in ("error_to_rewarded", "error_to_own")]
    forgetting = result.controls["reset_each_episode"]["final_normalized"]
    ratios = [quoted(of) for of in (result.summary["final_normalized"], forgetting)]
    return "| " + " | ".join([f"`{name}`", followed, *errors, *ratios]) + " |"


found = [EvalResult.load(path) for path in arguments.checkpoints.glob("*/evaluation.json")]
found.sort(key=lambda result: (result.env_id, "-ad" in result.agent, result.agent))  # a backbone has one colour
arguments.out.mkdir(parents=True, exist_ok=True)
print("picture:", plot_environments(found, arguments.out / "environments.png"))
for env_id in dict.fromkeys(result.env_id for result in found):
    results = [result for result in found if result.env_id == env_id]
    name = short_name(env_id)
    print("picture:", plot_results(results, arguments.out / f"{name}.png"))
    by_task(results, arguments.out / f"{name}-by-task.png")
    for result in results:
        print(f"{result.agent}, episode 1 / 10 / 40 | normalized: {learning(result)}")
        reached = result.summary["episodes_to_90_percent_of_gain"]
        print(f"{result.agent}, " + ("no gain" if reached is None else f"90 % of its gain by episode {reached}"))
        steps, returns = (np.asarray(of)[:, -LAST_EPISODES:].mean() for of in (result.lengths, result.returns))
        if name == "ant-dir":  # it is paid 1 for each step on its feet
            told = f"{steps:.1f} | {returns - steps:.0f}"
            print(f"{result.agent}, last episodes | steps | return without the survival bonus: {told}")
    for other in results[1:]:
        difference = paired_difference(results[0], other)
        print(f"{results[0].agent} minus {other.agent}, paired by task: {quoted(difference, 3)}")
    for result in results:
        model, _ = load_checkpoint(arguments.checkpoints / result.agent)
        print(table_row(result.agent, result, sum(p.numel() for p in model.parameters())))
others = {path.stem: EvalResult.load(path) for path in sorted(arguments.others.glob("*.json"))}
for name, result in others.items():
    print(f"{name}, episode 1 / 10 / 40 | normalized: {learning(result)}")
    print(table_row(name, result))
for name, result in sorted({**{result.agent: result for result in found}, **others}.items()):
    if "swapped_rewards" in result.controls:
        print(control_row(name, result))
