"""One training run on several processes: each takes its rows of every batch, all hold the same model.

``torchrun`` and ``accelerate launch`` start the processes and tell each by environment variables who it is. All draw
the same batches and take the same step with the same gradient, the mean over the steps of the whole batch, so the run
is the one that a single process would do, within rounding. The first process alone acts and writes.

    R processes, B rows of a batch, of which a process takes about B / R
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from icrl_agents.errors import ClusterError, ConfigError

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""How long processes wait for the first, which validates and acts in the meantime. A lost one is noticed at once."""


def checked_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: nothing can be computed there.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: PyTorch finds no GPU here")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError):  # no such device, none on this machine, or one that holds no numbers
        raise ConfigError(f"device {name!r}: nothing can be computed there; expected cpu or cuda") from None
    return device


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. A single one is the default, and then nothing here does anything.

    Attributes:
        rank: which this is; the first is 0.
        count: R.
        local_rank: which this is on its machine: the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that acts, validates and writes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """What ``"auto"``, ``"cpu"`` or ``"cuda"`` is here: several processes of a machine have a GPU each.

        Raises:
            ConfigError: nothing can be computed there, or fewer GPUs than processes.
        """
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name != "cuda" or self.count == 1:
            return checked_device(name)
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"this machine has {torch.cuda.device_count()} GPUs: expected no more processes, got process "
                f"{self.local_rank}, counted from 0"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that cannot be divided.

        Raises:
            ConfigError: naming a number of processes that can.
        """
        if batch_size % self.count:
            fitting = [r for r in range(1, batch_size + 1) if batch_size % r == 0]
            raise ConfigError(
                f"a batch of {batch_size} sequences cannot be divided among {self.count} processes: start one of "
                f"{', '.join(map(str, fitting))}"
            )

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch of so many."""
        own = np.array_split(np.arange(batch), self.count)[self.rank]
        return slice(int(own[0]), int(own[-1]) + 1)

    def add_up(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Replace every gradient by its sum over the processes.

        Returns:
            The sum of their losses.

        Raises:
            ClusterError: another process was lost.
        """
        if self.count == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor([loss])])
        with _together():
            distributed.all_reduce(flat)
        *totals, total_loss = flat.split([*(g.numel() for g in gradients), 1])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))
        return total_loss.item()

    def any(self, here: bool) -> bool:
        """Whether it is so in any of the processes.

        Raises:
            ClusterError: another process was lost.
        """
        if self.count == 1:
            return here
        there = torch.tensor(int(here))
        with _together():
            distributed.all_reduce(there, distributed.ReduceOp.MAX)
        return bool(there)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all. Where it meets an error instead, none waits for it in vain.

        Raises:
            ClusterError: the first process met an error, or another process was lost.
        """
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]  # what was made, or the error's text: not every error can be sent
        if self.first:
            try:
                outcome[0] = make()
            except Exception as error:
                self._send([None, str(error)])
                raise
        self._send(outcome)
        if outcome[1] is not None:
            raise ClusterError(f"the first process stopped: {outcome[1]}")
        return outcome[0]

    def _send(self, outcome: list[Any]) -> None:
        with _together():
            distributed.broadcast_object_list(outcome, 0, device=torch.device("cpu"))

    def check_same(self, what: str, value: object) -> None:
        """See that all processes start alike; also, none goes on before all are here.

        Raises:
            ConfigError: they differ, which is what happens where they do not share a file system.
        """
        if self.count == 1:
            return
        values: list[object] = [None] * self.count
        with _together():
            distributed.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise ConfigError(
                f"the processes differ in {what}: {values}. They need the same data and the same run's directory, on a "
                "file system that all of them see"
            )

    def give_all(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by the first process's.

        Raises:
            ClusterError: another of the processes was lost.
        """
        if self.count > 1:
            with _together():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that ``torchrun`` or ``accelerate launch`` started together; one where neither did.

    Raises:
        ClusterError: the others cannot be reached.
        ConfigError: environment variables that make no sense.
    """
    this = processes_of_environment()
    if this.count == 1 or distributed.is_initialized():
        yield this
        return
    # Objects and rounds travel by the CPU's backend, gradients by that of the device they are on.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield this
    finally:
        distributed.destroy_process_group()


def processes_of_environment() -> Processes:
    """Which process this is of how many, without waiting for the others.

    Raises:
        ConfigError: environment variables that make no sense.
    """
    try:
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
    except ValueError as error:
        raise ConfigError(f"RANK, LOCAL_RANK and WORLD_SIZE are whole numbers: {error}") from None
    if "RANK" not in os.environ or not 0 <= rank < count:  # e.g. a batch system's WORLD_SIZE
        rank, count, local_rank = 0, 1, 0
    return Processes(rank, count, local_rank)


@contextmanager
def _together() -> Iterator[None]:
    """What goes wrong while processes exchange something becomes our own error."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # DistBackendError is a RuntimeError, a bad address a ValueError
        raise ClusterError(
            f"another process of this training ended or cannot be reached ({str(error).splitlines()[0]}); "
            "what was saved is whole, and the same command goes on from there"
        ) from error
