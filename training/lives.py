"""Lives that are longer than a round: rows go on in their tasks with what they remember, until they forget.

A round begins where the one before ended: with its simulations, observations and memories (truncated backpropagation
with stored state, as R2D2, Kapturowski et al. 2019).

    N rows, N_o observation entries, T token entries
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils import _pytree as pytree

from icrl_agents.agent import InContextAgent
from icrl_agents.backbones import Carry
from icrl_agents.envs import MetaVectorEnv, Task
from icrl_agents.errors import ConfigError
from icrl_agents.model import InContextModel

CARRY = "carry."
"""What begins the names of the parts of memories."""


@dataclass(frozen=True)
class Beginning:
    """Where the rows are when a round begins.

    Attributes:
        observation: ``[N, N_o]``, which they act on next.
        pending: ``[N, T - N_o]``, what their next token holds beside it.
        rounds_left: ``[N]``, of their lives, this one included.
        memory: ``carry.0, carry.1, ...`` ``[N, ...]``, what they remember.
    """

    observation: np.ndarray
    pending: np.ndarray
    rounds_left: np.ndarray
    memory: dict[str, np.ndarray]


def check_task_changes(task_changes: float, life_rounds: int) -> None:
    """Raise where tasks cannot change with that probability in such lives.

    Raises:
        ConfigError: it is no probability, or lives end with every round.
    """
    if not 0 <= task_changes <= 1:
        raise ConfigError(f"task_changes: expected a probability, got {task_changes}")
    if task_changes and life_rounds == 1:
        raise ConfigError("task_changes happen between the rounds of a life: give life_rounds of at least 2")


def begin_round(
    env: MetaVectorEnv,
    student: InContextAgent,
    before: Mapping[str, np.ndarray],
    life_rounds: int,
    rng: np.random.Generator,
    task_changes: float = 0.0,
) -> Beginning:
    """Put environment and student where the round before left them; rows whose lives are over begin anew.

    A row's task is always the same. That a task changes is seen from the memory: it is that of a life in another row.

    Args:
        env: of N rows.
        student: any state; gets theirs.
        before: what :func:`end_round` gave; empty begins every life.
        life_rounds: of a life at most; each draws its own number.
        rng: of all that begins.
        task_changes: probability that a row which goes on begins an episode, and has the memory of another such row, of
            another task.
    """
    rows = env.num_envs
    student.reset(rows, seed=int(rng.integers(2**31)))
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    rounds_left = rng.integers(1, life_rounds + 1, rows)
    if before:
        before = {name: array.copy() for name, array in before.items()}
        go_on = before["rounds_left"] > 0
        drawn = go_on & (rng.random(rows) < task_changes) if task_changes else np.zeros(rows, bool)
        changed, others = _changes(drawn, env.tasks, rng)
        for name in ("tokens", "rounds_left", *(name for name in before if name.startswith(CARRY))):
            before[name][changed] = before[name][others]
        begins = ~go_on
        begins[changed] = True
        env.set_state({n.removeprefix("env."): a for n, a in before.items() if n.startswith("env.")})
        observation = before["observation"]
        if begins.any():
            observation, _ = env.reset(options={"reset_mask": begins})
        rounds_left = np.where(go_on, before["rounds_left"], rounds_left)
        state = student.get_state()
        state.tokens = before["tokens"]
        state.carry = _filled(state.carry, before)
        student.set_state(state)
        student.begin_episode(begins)
        student.forget(~go_on)
    state = student.get_state()
    return Beginning(observation, state.tokens[:, env.definition.observation_dim :], rounds_left, _parts(state.carry))


def end_round(
    env: MetaVectorEnv, student: InContextAgent, observation: np.ndarray, rounds_left: np.ndarray
) -> dict[str, np.ndarray]:
    """Where a round ends, for :func:`begin_round`.

    Args:
        env: of N rows.
        student: that acted.
        observation: ``[N, N_o]``, which it would act on next.
        rounds_left: ``[N]``, with the round that ends.
    """
    memory = student.get_state()
    lives = {f"env.{name}": array for name, array in env.get_state().items()}
    return (
        lives
        | _parts(memory.carry)
        | {
            "tokens": memory.tokens,
            "observation": observation,
            "rounds_left": rounds_left - 1,
        }
    )


def remembered(model: InContextModel, memory: Mapping[str, np.ndarray]) -> Carry | None:
    """Memories ``carry.0, carry.1, ...`` as the model's carry; None where there are none."""
    return _filled(model.backbone.initial_carry(1), memory) if memory else None


def _changes(drawn: np.ndarray, tasks: Sequence[Task], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Rows of those ``drawn`` ``[N]`` whose task changes, and rows of other tasks whose memory each then has."""
    rows = rng.permutation(np.flatnonzero(drawn))
    pairs = [(row, other) for row, other in zip(rows, np.roll(rows, 1), strict=True) if tasks[row] != tasks[other]]
    return [int(row) for row, _ in pairs], [int(other) for _, other in pairs]


def _parts(carry: Carry) -> dict[str, np.ndarray]:
    """A carry as arrays of their own."""
    leaves = pytree.tree_leaves(carry)
    return {f"{CARRY}{i}": leaf.detach().cpu().numpy().copy() for i, leaf in enumerate(leaves)}


def _filled(like: Carry, memory: Mapping[str, np.ndarray]) -> Carry:
    """A carry of the structure, types and device of another."""
    leaves, structure = pytree.tree_flatten(like)
    given = [torch.from_numpy(memory[f"{CARRY}{i}"]).to(leaf) for i, leaf in enumerate(leaves)]
    return pytree.tree_unflatten(given, structure)
