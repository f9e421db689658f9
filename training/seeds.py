"""Independent random streams from one seed."""

import numpy as np

from icrl_agents.errors import ConfigError


def purpose_seed(seed: int, *purpose: str | int) -> int:
    """An independent seed for each purpose."""
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def check_seed(seed: int) -> None:
    """Refuse what some generator on the way would not take.

    Raises:
        ConfigError: it is negative, or of more than 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed: expected at least 0 and less than 2**63, got {seed}")
