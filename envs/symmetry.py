"""Symmetries of body and tasks: the world turned or mirrored, in which the same is possible and pays as much."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SignedPermutation:
    """What a symmetry does to a vector: entries change places and signs.

    Attributes:
        index: ``[n]``, which entry comes to each place.
        sign: ``[n]``, 1 or -1.
    """

    index: np.ndarray
    sign: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Of vectors ``[..., n]``, in their own type."""
        return vectors[..., self.index] * self.sign.astype(vectors.dtype)

    @property
    def inverse(self) -> "SignedPermutation":
        """What undoes it."""
        back = np.argsort(self.index)
        return SignedPermutation(back, self.sign[back])

    def after(self, first: "SignedPermutation") -> "SignedPermutation":
        """First the other, then this."""
        return SignedPermutation(first.index[self.index], first.sign[self.index] * self.sign)

    @classmethod
    def identity(cls, size: int) -> "SignedPermutation":
        """Leaves n entries as they are."""
        return cls(np.arange(size), np.ones(size))

    @classmethod
    def joined(cls, *parts: "SignedPermutation") -> "SignedPermutation":
        """Of vectors put together from several, each with its own."""
        starts = np.cumsum([0, *(len(part.index) for part in parts[:-1])])
        return cls(
            np.concatenate([part.index + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.sign for part in parts]),
        )


@dataclass(frozen=True)
class Symmetry:
    """What a symmetry does to everything that a policy which is told the task sees and does.

    Attributes:
        observation: of observations.
        action: of actions.
        task: of task vectors.
    """

    observation: SignedPermutation
    action: SignedPermutation
    task: SignedPermutation

    @property
    def inverse(self) -> "Symmetry":
        """What undoes it."""
        return Symmetry(self.observation.inverse, self.action.inverse, self.task.inverse)

    def after(self, first: "Symmetry") -> "Symmetry":
        """First the other, then this."""
        return Symmetry(
            self.observation.after(first.observation), self.action.after(first.action), self.task.after(first.task)
        )
