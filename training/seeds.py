"""Independent random streams from one seed."""

import numpy as np


def purpose_seed(seed: int, *purpose: str | int) -> int:
    """An independent seed for each purpose."""
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])
