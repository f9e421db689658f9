"""What a checkpoint's config.json holds, as frozen dataclasses.

Reading is strict: an unknown key, a missing key or a wrong type is a :class:`ConfigError`.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from icrl_agents.errors import ConfigError

FORMAT_VERSION = 1
"""Version of the checkpoint format; a checkpoint with another one is refused."""

MAX_DEPTH = 32
"""A JSON file nested deeper is refused: copying it would overrun Python's stack."""

FLOAT32_MAX = 3.4028234663852886e38
"""Actions are float32: their bounds are not beyond."""

Tokenization = Literal["transition", "element"]
Head = Literal["deterministic", "gaussian", "mixture"]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an :class:`~icrl_agents.model.InContextModel`.

    Attributes:
        observation_dim: entries of one observation.
        action_dim: entries of one action.
        backbone: registered name of the sequence model, e.g. ``"mamba"``.
        backbone_options: fields of that backbone's own config dataclass.
        tokenization: ``"transition"`` reads one token a decision (the paper); ``"element"`` reads three, the
            previous action, the previous reward and the observation, and decides at the last (original AD).
        head: ``"deterministic"`` predicts the action; ``"gaussian"`` its mean and log standard deviation; ``"mixture"``
            several actions and how probable each is, of which the most probable is taken.
        head_hidden: width of the head's hidden layers; 0 makes the head linear.
        head_layers: hidden layers of the head.
        mask_rewards: the control agent that never sees a reward: the token's reward entry is always 0.
        head_components: actions that a mixture head predicts.
    """

    observation_dim: int
    action_dim: int
    backbone: str
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    tokenization: Tokenization = "transition"
    head: Head = "deterministic"
    head_hidden: int = 128
    head_layers: int = 1
    mask_rewards: bool = False
    head_components: int = 8

    def __post_init__(self) -> None:
        check_literals(self)
        _at_least("observation_dim", self.observation_dim, 1)
        _at_least("action_dim", self.action_dim, 1)
        _at_least("head_hidden", self.head_hidden, 0)
        _at_least("head_layers", self.head_layers, 1)
        _at_least("head_components", self.head_components, 2)


@dataclass(frozen=True)
class AgentConfig:
    """Everything a checkpoint says about itself, except its weights.

    Attributes:
        name: the agent's name, e.g. ``"reacher-goal-mamba"``.
        env_id: Gymnasium id of the environment it was trained for.
        env_options: keyword arguments for ``gymnasium.make``.
        action_low: lower bound of each action entry.
        action_high: upper bound of each action entry.
        episode_steps: horizon of one episode.
        training_episodes: episodes of one task that a training sequence spanned.
        split: named task split it was trained on.
        split_hash: content hash of that split.
        mujoco_version: version of the physics the data came from.
        model: shape of the model.
        format_version: version of this format.
    """

    name: str
    env_id: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    episode_steps: int
    training_episodes: int
    split: str
    split_hash: str
    mujoco_version: str
    model: ModelConfig
    env_options: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _at_least("episode_steps", self.episode_steps, 1)
        _at_least("training_episodes", self.training_episodes, 1)
        if self.name in (".", "..") or re.search(r"[/\\\x00-\x1f]", self.name):  # files are named after it
            raise ConfigError(f"an agent's name has no slashes and no control characters, got {self.name!r}")
        bounds = list(zip(self.action_low, self.action_high, strict=False))
        if not len(bounds) == len(self.action_low) == len(self.action_high) == self.model.action_dim:
            raise ConfigError(
                f"expected {self.model.action_dim} bounds in action_low and in action_high, one per action "
                f"entry, got {len(self.action_low)} and {len(self.action_high)}"
            )
        if not all(-FLOAT32_MAX <= low < high <= FLOAT32_MAX for low, high in bounds):
            raise ConfigError(f"expected action bounds that are finite in float32, low below high, got {bounds}")
        for ends in ("action_low", "action_high"):  # 1 and 1.0 are one bound, in files as well
            object.__setattr__(self, ends, tuple(float(bound) for bound in getattr(self, ends)))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass instance as plain JSON-able data."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Any, *, where: str = "config") -> T:
    """Build ``cls`` from plain data, strictly.

    Args:
        cls: a dataclass.
        data: mapping of its fields, nested dataclasses as mappings.
        where: name of the data in messages.

    Raises:
        ConfigError: unknown or missing keys, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object with named fields, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown key(s) {', '.join(map(repr, unknown))}; known: {', '.join(fields)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(required - set(data))
    if missing:
        raise ConfigError(f"{where}: missing key(s) {', '.join(map(repr, missing))}")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def load_json(cls: type[T], path: Path) -> T:
    """Read a dataclass from a JSON file.

    Raises:
        ConfigError: the file is missing, is no JSON, or does not fit ``cls``.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair could not be written again
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if _deeper(data, MAX_DEPTH):
        raise ConfigError(f"{path} is nested deeper than {MAX_DEPTH} levels")
    versioned = any(f.name == "format_version" for f in dataclasses.fields(cls))  # type: ignore[arg-type]
    if versioned and isinstance(data, Mapping) and data.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format_version {data.get('format_version')!r}; "
            f"this version of icrl-agents reads {FORMAT_VERSION}"
        )
    return from_dict(cls, data, where=path.name)


def check_literals(config: Any) -> None:
    """Refuse values that a field's ``Literal`` type does not list, in a dataclass built in code.

    Raises:
        ConfigError: names the field and what it may be.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            _value(hint, getattr(config, name), name)


def _deeper(data: Any, depth: int) -> bool:
    """Whether lists and objects stand in each other more than ``depth`` levels deep."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return depth < 0 or any(_deeper(value, depth - 1) for value in inner)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is at least {least}, got {value}")


def _value(hint: Any, value: Any, where: str) -> Any:
    """``value`` checked against, and where JSON loses the type converted to, the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if origin in (types.UnionType, typing.Union):
        return _union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return origin(_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: {value} is too large") from None
    kind = Mapping if origin is not None and issubclass(origin, Mapping) else hint
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def _union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    for option in options:
        if option is types.NoneType:
            if value is None:
                return None
            continue
        try:
            return _value(option, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}: {value!r} fits none of {', '.join(map(str, options))}")
