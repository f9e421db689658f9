"""What a checkpoint was made with, compared with what is here."""

import warnings

import mujoco

from icrl_agents.config import AgentConfig
from icrl_agents.envs import env_ids, split_names, task_split
from icrl_agents.errors import ProvenanceWarning

UNKNOWN = ("", "unknown")
"""What stands in a config where its data did not say."""


def differences(config: AgentConfig) -> tuple[str, ...]:
    """In words: where physics and tasks are others than those an agent was made with; nothing where it is not known."""
    found = []
    if config.mujoco_version not in (*UNKNOWN, mujoco.__version__):
        found.append(f"mujoco {config.mujoco_version} (here {mujoco.__version__})")
    here = split_names(config.env_id) if config.env_id in env_ids() else ()
    if here and config.split_hash not in UNKNOWN:
        own = f"split {config.split!r} of {config.env_id} with hash {config.split_hash}"
        if config.split not in here:
            found.append(f"{own} (here there are {', '.join(here)})")
        elif config.split_hash != (published := task_split(config.env_id, config.split).content_hash):
            found.append(f"{own} (here {published})")
    return tuple(found)


def warn_of_differences(config: AgentConfig, *, stacklevel: int) -> None:
    """One line, a :class:`ProvenanceWarning`, if there are :func:`differences`."""
    found = differences(config)
    if found:
        warnings.warn(
            f"agent {config.name!r} was made with {' and '.join(found)}: what was measured of it may not hold here",
            ProvenanceWarning,
            stacklevel=stacklevel + 1,
        )
