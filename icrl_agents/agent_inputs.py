"""What an agent is given, checked: arrays of its rows and environments to act in.

B rows
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from icrl_agents.config import AgentConfig
from icrl_agents.envs.own_modules import import_own_modules
from icrl_agents.errors import ConfigError, InputError

RECORDED = ("observations", "actions", "rewards", "terminated", "truncated")
"""What :class:`RecordedExperience` has."""


class RecordedExperience(Protocol):
    """Experience of one task, ``[T, ...]`` (``[B, T, ...]`` for an agent with B rows), as
    :class:`icrl_agents.training.histories.History` holds it."""

    @property
    def observations(self) -> np.ndarray:
        """``[T, N_o]``, those acted on."""

    @property
    def actions(self) -> np.ndarray:
        """``[T, N_a]``, executed."""

    @property
    def rewards(self) -> np.ndarray:
        """``[T]``."""

    @property
    def terminated(self) -> np.ndarray:
        """``[T]`` bool."""

    @property
    def truncated(self) -> np.ndarray:
        """``[T]`` bool."""


class Rows(NamedTuple):
    """The rows that an agent acts in.

    Attributes:
        size: B.
        single: whether they are one environment, whose arrays have no leading axis.
    """

    size: int
    single: bool

    def of(self, name: str, value: npt.ArrayLike, tail: tuple[int, ...]) -> np.ndarray:
        """``value``, of shape ``tail`` for one environment and else ``[B, *tail]``, as ``[B, *tail]``."""
        array = as_array(name, value)
        expected = tail if self.single else (self.size, *tail)
        if array.shape != expected:
            acts_in = "one environment" if self.single else f"{self.size} rows"
            raise InputError(
                f"{name}: expected shape {expected}, since the agent acts in {acts_in}, got {array.shape}; "
                "reset(num_envs=...) or reset(env=...) says in how many it acts"
            )
        return array.reshape(self.size, *tail)

    def real(self, name: str, value: npt.ArrayLike, tail: tuple[int, ...]) -> np.ndarray:
        """``value`` as finite float32 ``[B, *tail]``."""
        return as_finite(name, self.of(name, value, tail))

    def flags(self, name: str, value: npt.ArrayLike, tail: tuple[int, ...] = ()) -> np.ndarray:
        """``value`` as bool ``[B, *tail]``."""
        array = self.of(name, value, tail)
        if array.dtype != bool and (array.dtype.kind not in "iu" or not np.isin(array, (0, 1)).all()):
            raise InputError(f"{name}: expected True or False, got {array!r}")
        return array.astype(bool)

    def experience(
        self, history: RecordedExperience, observation_dim: int, action_dim: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observations ``[B, T, N_o]``, actions ``[B, T, N_a]``, rewards and ends of episodes ``[B, T]``."""
        missing = [name for name in RECORDED if not hasattr(history, name)]
        if missing:
            raise InputError(f"history: a {type(history).__name__} has no attributes {', '.join(missing)}")
        steps = as_array("rewards", history.rewards).shape[-1:]
        if not steps:
            raise InputError("rewards: expected the rewards of whole steps, got one number")
        return (
            self.real("observations", history.observations, (*steps, observation_dim)),
            self.real("actions", history.actions, (*steps, action_dim)),
            self.real("rewards", history.rewards, steps),
            self.flags("terminated", history.terminated, steps) | self.flags("truncated", history.truncated, steps),
        )


def as_array(name: str, value: npt.ArrayLike | dict[str, np.ndarray]) -> np.ndarray:
    """``value`` as an array, whatever its dtype."""
    if isinstance(value, tuple) and value and isinstance(value[-1], dict):
        raise InputError(f"{name}: expected an array, got a tuple that ends in a dict, as reset and step return it")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors on a GPU or with gradients
        raise InputError(f"{name}: expected an array: {error}") from None
    if array.dtype == object and not array.ndim:
        raise InputError(f"{name}: expected an array, got {'None' if value is None else type(value).__name__}")
    return array


def as_finite(name: str, array: np.ndarray) -> np.ndarray:
    """A copy as float32, finite also there."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float32)
    finite = np.isfinite(rounded)
    if not finite.all():
        raise InputError(f"{name}: expected numbers that are finite in float32, got {array[~finite][0]}")
    return rounded


def autoreset_mode_of(given: AutoresetMode | str | None) -> AutoresetMode:
    """Gymnasium's mode of that name; SAME_STEP by default."""
    try:
        return AutoresetMode(AutoresetMode.SAME_STEP if given is None else given)
    except ValueError:
        known = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ConfigError(f"unknown autoreset mode {given!r}; known: {known}") from None


def make_of(make: Callable[..., Any], env_id: str, options: Mapping[str, Any], **own: Any) -> Any:
    """What Gymnasium makes of an id and options, and of arguments of our own, which an error does not show."""
    import_own_modules()
    try:
        return make(env_id, **own, **options)
    except (TypeError, gymnasium.error.Error) as error:
        raise ConfigError(f"{env_id} cannot be made with the options {dict(options)}: {error}") from error


def read_env(
    config: AgentConfig, env: Any, autoreset_mode: AutoresetMode | str | None
) -> tuple[int | None, AutoresetMode | str | None]:
    """Rows and autoreset mode of ``env``."""
    if not isinstance(env, VectorEnv):
        if not (hasattr(env, "observation_space") and hasattr(env, "action_space")):
            raise InputError(f"env: expected an environment with spaces, got {type(env).__name__}")
        require_spaces(config, env.observation_space, env.action_space)
        # stable-baselines3's VecEnv has rows, begins episodes in the step that ends one, and is no gymnasium.Env
        return (None if isinstance(env, gymnasium.Env) else getattr(env, "num_envs", None)), autoreset_mode
    require_spaces(config, env.single_observation_space, env.single_action_space)
    said = env.metadata.get("autoreset_mode")
    if said is None and autoreset_mode is None:
        raise ConfigError(f"{env} does not say its autoreset mode: pass autoreset_mode=")
    mode = autoreset_mode_of(said if autoreset_mode is None else autoreset_mode)
    if said is not None and mode is not autoreset_mode_of(said):
        raise ConfigError(
            f"{env} says that its autoreset mode is {autoreset_mode_of(said).value!r}, not {mode.value!r}"
        )
    return env.num_envs, mode


def require_spaces(config: AgentConfig, observation: gymnasium.Space, action: gymnasium.Space) -> None:
    """Raise unless an environment's spaces are the agent's."""
    at = config.model
    for name, space in (("observation", observation), ("action", action)):
        if not isinstance(space, gymnasium.spaces.Box):
            raise ConfigError(f"agent {config.name!r} needs Box spaces; the environment's {name} space is {space}")
    if observation.shape != (at.observation_dim,) or action.shape != (at.action_dim,):
        raise ConfigError(
            f"agent {config.name!r} reads observations of shape ({at.observation_dim},) and gives "
            f"actions of shape ({at.action_dim},); the environment has {observation.shape} and "
            f"{action.shape}"
        )
    assert isinstance(action, gymnasium.spaces.Box)
    for own, bound in ((config.action_low, action.low), (config.action_high, action.high)):
        if not (np.isclose(np.asarray(own), bound) | np.isinf(bound)).all():
            raise ConfigError(
                f"agent {config.name!r} gives actions from {list(config.action_low)} to {list(config.action_high)}; "
                f"the environment, rescaled perhaps, takes those from {action.low.tolist()} to {action.high.tolist()}"
            )
