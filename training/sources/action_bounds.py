"""Between the unit box that a squashed policy acts in and the action space of its environment."""

import numpy as np


class ActionBounds:
    """Scales actions between [-1, 1] and ``[low, high]``, in float32.

    Args:
        low: lower bound of each action entry ``[A]``.
        high: upper bound ``[A]``.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self._centre, self._half = (self.high + self.low) / 2, (self.high - self.low) / 2

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[..., A]`` of the unit box as the environment takes them."""
        return self.clip(self._centre + self._half * actions)

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[..., A]`` of the environment in the unit box."""
        return (actions - self._centre) / self._half

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[..., A]`` of the environment, moved to the nearest within the bounds."""
        return np.clip(actions, self.low, self.high)
