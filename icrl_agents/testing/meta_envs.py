"""The contract of a meta-environment as a function to call from your own tests."""

from collections.abc import Callable
from functools import partial

import gymnasium
from gymnasium.vector import VectorEnv

from icrl_agents.testing.native_vector import VectorCheck
from icrl_agents.testing.single_env import SingleCheck


def check_meta_env(
    env: str | Callable[..., gymnasium.Env],
    make_vec: Callable[..., VectorEnv] | None = None,
    *,
    rows: int = 3,
    seed: int = 0,
) -> None:
    """Require the contract of a meta-environment (:class:`~icrl_agents.envs.MetaEnv`), with random actions.

    - One-dimensional Box spaces; observations inside, fresh arrays; rewards finite; episodes end.
    - Same seed and actions, same experience. Other seeds, other tasks.
    - Precedence at a reset: ``options={"task": ...}`` or ``set_task``, constructor ``task=``, draw by ``seed=``, task
      from before. ``info["new_task"]`` says whether a task was given or drawn. What does not fit is a ``TaskError``.
    - The task is hidden: initial states do not depend on it, two tasks and equal actions give equal observations over
      two episodes, no info betrays it without ``expose_task=True``. Where the definition says ``task_in_physics``,
      observations are equal until a contact begins or ends.
    - Pickling keeps the task, as what it was, and all options; the first reset after it says ``new_task``. The
      ``EnvSpec`` survives JSON.
    - Vector: row i equals the single environment of seed s + i bit for bit over two episodes, with autoreset SAME_STEP,
      ``final_obs`` and the task kept; ``tasks`` are one per row; ``reset_mask`` touches no other row; what is
      privileged has the entries that the definition says.

    Args:
        env: a registered id, or what makes the single environment, with its time limit, from ``task=`` and
            ``expose_task=``.
        make_vec: what makes the native vector environment from ``num_envs=``, ``tasks=`` and ``expose_task=``; for an
            id it is known. None, or an id without ``vector_entry_point``: only the single environment is checked.
        rows: of the vector environment, at least 2.
        seed: of tasks, states and actions.

    Raises:
        AssertionError: says what does not hold.
        ValueError: ``rows`` with which nothing could be checked.
    """
    if rows < 2:
        raise ValueError(f"rows is at least 2, got {rows}")
    if isinstance(env, str):
        if make_vec is None and gymnasium.spec(env).vector_entry_point is not None:
            make_vec = partial(gymnasium.make_vec, env, vectorization_mode="vector_entry_point")
        make: Callable[..., gymnasium.Env] = partial(gymnasium.make, env)
    else:
        make = env
    single = SingleCheck(make, seed)
    single.episodes_stay_in_their_spaces()
    single.seeds_determine_everything()
    single.plain_resets_keep_the_task()
    single.precedence_at_a_reset()
    single.what_does_not_fit_is_refused()
    single.initial_states_know_no_task()
    single.observations_know_no_task()
    single.infos_hide_the_task()
    single.pickling_keeps_the_task()
    single.spec_survives_json()
    if make_vec is not None:
        vector = VectorCheck(single, make_vec, rows)
        vector.says_what_it_is()
        vector.rows_equal_the_single_environment()
        vector.tasks_are_one_per_row()
        vector.reset_mask_touches_only_its_rows()
        vector.infos_hide_the_tasks()
        vector.privileged_is_as_wide_as_it_says()
