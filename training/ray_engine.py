"""Collecting on a Ray cluster: the tasks are divided into parts that learn side by side, on as many cores as there are.

A part is a range of the tasks. Its next interval is one Ray task without side effects, from the state before to what
happened and the state after; the states never leave the cluster but for the driver's copy. The driver puts the parts
of an interval together and commits it, exactly as one process would. So there are no part files to merge, workers need
no shared file system, a lost worker's interval is computed again by another, and a killed driver's successor goes on
from the last commit: with another number of parts if it likes, or with none.

What is guaranteed: every learner's initial weights, noise, order of samples, task and initial states are the same bits
as in one process. Its arithmetic is a slice of a batched one, whose rounding depends on how many learners are beside it
(about 2e-5 in observations after six updates of a tiny learner; learning amplifies it, so later experience is that of
an equally good learner, not the same one). With the same parts, a collection that was killed ends bit for bit as one
that was not.
"""

import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

import mujoco
import numpy as np
import torch

from icrl_agents.errors import ClusterError, ConfigError, IcrlError, MissingExtraError
from icrl_agents.training.collection import CollectionConfig, Engine, Interval, LocalEngine, OnRollout, Source
from icrl_agents.training.histories import HistoryWriter
from icrl_agents.training.manifest import Manifest
from icrl_agents.training.shards import as_arrays

AHEAD = 2
"""Intervals that are under way at once: no part waits for the commit, none runs away from the slowest."""

RETRIES = 3
"""How often the interval of a part is begun again when its worker is lost."""

CONNECT_SECONDS = 10.0

_Interval = tuple[dict[str, np.ndarray], dict[int, dict[str, np.ndarray]]]  # arrays and snapshots of a part


class RayEngine:
    """The learners work on a Ray cluster. Use it in ``with``.

    Args:
        address: ``"host:port"`` of a running cluster, ``"auto"`` for the one this machine belongs to, ``"ray://..."``
            for a Ray client; None starts Ray on this machine, for as long as the engine is in use, unless the
            environment variable ``RAY_ADDRESS`` says where one runs.
        shards: parts that the tasks are divided into; None is one for every core, at most one a task.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: nothing answers at the address.
    """

    def __init__(self, address: str | None = None, shards: int | None = None) -> None:
        if shards is not None and shards < 1:
            raise ConfigError(f"shards: expected at least 1, got {shards}")
        try:
            import ray
        except ImportError:
            raise MissingExtraError("ray", "ray") from None
        self._ray, self._shards = ray, shards
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address)

    def check(self, config: CollectionConfig, manifest: Manifest) -> None:
        """See :meth:`Engine.check`."""
        if config.task_informed:
            raise ConfigError(
                "a task-informed source is one learner of all tasks, which cannot be divided: collect it with "
                "--engine local"
            )
        if config.sac is not None:
            raise ConfigError(
                f"{config.sac.algorithm} learners keep their replay in the process that collects: collect with "
                "--engine local"
            )
        if self._shards is not None and self._shards > len(manifest.tasks):
            raise ConfigError(f"shards: expected at most one a task, {len(manifest.tasks)}, got {self._shards}")

    def intervals(
        self,
        config: CollectionConfig,
        manifest: Manifest,
        writer: HistoryWriter,
        on_rollout: OnRollout,
    ) -> Iterator[Interval]:
        """See :meth:`Engine.intervals`.

        Raises:
            ClusterError: the cluster, or a worker time and again, was lost.
            ConfigError: a worker has other versions than the dataset is of.
        """
        ray, tasks = self._ray, len(manifest.tasks)
        saved, steps = writer.resume_state(), writer.steps
        count = self._shards or min(tasks, max(1, int(ray.cluster_resources().get("CPU", 1))))
        parts = [range(int(own[0]), int(own[-1]) + 1) for own in np.array_split(np.arange(tasks), count)]
        work = ray.remote(num_cpus=1, num_returns=2, max_retries=RETRIES)(_work)
        with _errors(ray):
            fixed = ray.put((config, manifest))
            states = [ray.put(None if saved is None else state_of(saved, part, tasks)) for part in parts]
            under_way: deque[list[tuple[Any, Any]]] = deque()
            submitted = steps
            while steps < config.steps:
                while submitted < config.steps and len(under_way) < AHEAD:
                    refs = [work.remote(fixed, p, submitted, s) for p, s in zip(parts, states, strict=True)]
                    states = [state for _, state in refs]
                    under_way.append(refs)
                    submitted += config.shard_steps
                done = under_way.popleft()
                made: list[_Interval] = ray.get([interval for interval, _ in done])
                after = ray.get([state for _, state in done])
                steps += config.shard_steps
                arrays = _side_by_side([arrays for arrays, _ in made])
                snapshots = {step: _side_by_side([taken[step] for _, taken in made]) for step in made[0][1]}
                on_rollout(steps, float(arrays["rewards"].mean()) * manifest.episode_steps)
                yield Interval(arrays, snapshots, _side_by_side(after))

    def close(self) -> None:
        """Leave the cluster; a Ray that this engine started ends. One that was there before stays as it is."""
        if self._ours:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def open_engine(
    name: Literal["local", "ray"] = "local",
    address: str | None = None,
    shards: int | None = None,
    device: str = "cpu",
) -> Iterator[Engine]:
    """The engine of a name, for as long as it is in use.

    Args:
        name: ``"local"`` or ``"ray"``.
        address: see :class:`RayEngine`; none for the local one.
        shards: as well.
        device: of the local engine's learners, see :class:`LocalEngine`.

    Raises:
        ConfigError: options that the engine does not have.
    """
    if name == "ray":
        if device != "cpu":
            raise ConfigError(f"a cluster's learners learn on its CPUs, got --device {device}")
        with RayEngine(address, shards) as engine:
            yield engine
        return
    given = [option for option, value in (("--address", address), ("--shards", shards)) if value is not None]
    if given:
        raise ConfigError(f"{' and '.join(given)} say how to collect on a cluster: add --engine ray")
    yield LocalEngine(device)


def state_of(state: Mapping[str, np.ndarray], part: range, tasks: int) -> dict[str, np.ndarray]:
    """The state of some tasks' learners, out of that of all ``tasks``, see :class:`Interval`."""
    out = {}
    for name, array in state.items():
        each = len(array) // tasks if array.ndim else 0  # learners or rows of one task; a number is everyone's
        out[name] = array[part.start * each : part.stop * each] if each else array
    return out


def _work(fixed: tuple[CollectionConfig, Manifest], part: range, steps: int, saved: Any) -> tuple[_Interval, Any]:
    """One interval of some tasks, on a worker: arrays and snapshots, and the state after it."""
    config, manifest = fixed
    here = {"mujoco": mujoco.__version__, "torch": torch.__version__}
    wanted = {"mujoco": manifest.mujoco_version, "torch": manifest.hyperparameters["torch"]}
    if here != wanted:
        raise ConfigError(f"the worker on {socket.gethostname()} has {here}, the dataset is of {wanted}")
    torch.set_num_threads(1)
    interval = Source(config, manifest, saved, steps, part, num_threads=1).advance()
    snapshots = {step: as_arrays(tensors) for step, tensors in interval.snapshots.items()}
    return (dict(interval.arrays), snapshots), as_arrays(interval.state)


def _side_by_side(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of adjacent parts as those of their union; numbers are the same in all."""
    first = parts[0]
    return {n: np.concatenate([part[n] for part in parts]) if first[n].ndim else first[n] for n in first}


def _connect(ray: Any, address: str | None) -> None:
    """Join a cluster or start one."""
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    # Ray's own default would hide the accelerators from tasks that ask for none, and warn that it will not for long.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if where == "this machine":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a command about data calls nobody on its own
        options["include_dashboard"] = False
    else:
        _knock(where)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no Ray could be reached at {where}: {error}. A cluster that was started with a token wants it here too, "
            "see RAY_AUTH_TOKEN_PATH in Ray's documentation"
        ) from error


def _knock(address: str) -> None:
    """Ray waits minutes for a port where nothing listens; this does not."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray could be reached at {address}: {error}. Expected the address that `ray start --head` printed"
        ) from None


@contextmanager
def _errors(ray: Any) -> Iterator[None]:
    """Errors of workers as they were raised, and losses as our own error."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IcrlError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"the cluster lost what it was working on: {error}; what was committed is whole, and the same command "
            "goes on from there"
        ) from error
