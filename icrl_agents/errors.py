"""Every error this package raises on purpose.

IcrlError
├── ConfigError           (ValueError)   a config.json or option that is unknown, missing or contradictory
├── TaskError             (ValueError)   a task, split or list of tasks that does not fit the environment
│   └── NoTaskYetError    (AttributeError) a task was asked for before the first reset settled one
├── UnknownNameError      (LookupError)  an agent, env, split, backbone or preset nobody registered; lists what exists
├── InputError            (ValueError)   an observation, reward or mask of the wrong shape, or not finite
├── CallOrderError        (RuntimeError) agent methods called in an order that has no meaning
├── ContextOverrunError   (RuntimeError) more steps than a backbone with absolute positions can hold
├── CheckpointError       (ValueError)   weights or files that are missing, damaged or do not fit their config
│   └── NotFiniteError    (ValueError)   weights, or actions that they gave, that are not finite
├── DatasetError          (ValueError)   learning histories that are missing, damaged, locked or of another env
├── SimulationError       (RuntimeError) the physics engine reported a failure
├── ClusterError          (ConnectionError) processes or machines that work together cannot be reached, or were lost
└── MissingExtraError     (ImportError)  an optional dependency is needed; names the extra that installs it

Each also derives from the built-in error a caller would expect, given in brackets. There is one warning,
:class:`ProvenanceWarning`.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class IcrlError(Exception):
    """Base of every error of this package."""


class ProvenanceWarning(UserWarning):
    """A checkpoint was made with another physics engine or other tasks than those that are here."""


class ConfigError(IcrlError, ValueError):
    """A configuration that is unknown, missing or contradictory."""


class TaskError(IcrlError, ValueError):
    """A task, split or list of tasks that does not fit the environment."""


class NoTaskYetError(TaskError, AttributeError):
    """A task was asked for before the first reset settled one; to ``hasattr`` there is none."""


class UnknownNameError(IcrlError, LookupError):
    """A name nobody registered. The message lists the valid ones and the nearest.

    Args:
        kind: what the name names, e.g. ``"agent"``.
        name: the name asked for.
        known: the names that exist.
        advice: a sentence on where others come from.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], advice: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(
            f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.{advice and ' ' + advice}"
        )


class InputError(IcrlError, ValueError):
    """An observation, reward or mask of the wrong shape or with values that are not finite."""


class CallOrderError(IcrlError, RuntimeError):
    """Methods of an agent were called in an order that has no meaning."""


class ContextOverrunError(IcrlError, RuntimeError):
    """A backbone with absolute positions was asked for more steps than it has positions."""


class CheckpointError(IcrlError, ValueError):
    """A checkpoint is missing, damaged, or its weights do not fit its config."""


class NotFiniteError(CheckpointError):
    """Weights, or actions that they gave, are not finite."""


class DatasetError(IcrlError, ValueError):
    """Learning histories are missing, damaged, in use by another process, or of another environment."""


class SimulationError(IcrlError, RuntimeError):
    """The physics engine reported a failure."""


class ClusterError(IcrlError, ConnectionError):
    """Processes or machines that work together cannot be reached, or one of them was lost."""


class MissingExtraError(IcrlError, ImportError):
    """An optional dependency is needed for what was asked.

    Args:
        package: the module that could not be imported.
        extra: the extra of icrl-agents that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is needed for this: pip install 'icrl-agents[{extra}]'")
