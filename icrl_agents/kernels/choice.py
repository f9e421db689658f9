"""Which kernel runs a call: the fastest that serves it, or the one that was named.

A kernel that is named, by ``kernel=`` or by the environment variable ``ICRL_KERNEL``, runs or raises: nothing else
takes its place unseen. Only functions that the kernel in ``ICRL_KERNEL`` does not have at all are chosen as ever.
Inside :func:`forced_kernel` its name stands in the place of ``ICRL_KERNEL``.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from icrl_agents.errors import ConfigError, UnknownNameError

VARIABLE = "ICRL_KERNEL"
SCAN, STEP, CONV, CONV_STEP = "selective_scan", "selective_step", "causal_conv", "conv_step"


class _Kernel(NamedTuple):
    """What a kernel serves.

    Attributes:
        module: where its functions are; each takes what the reference's takes.
        summary: how it runs.
        install: how to get the package it needs; empty if it needs none.
        device: float32 there is what it serves; None: any real dtype on any device.
        functions: those it has.
        remembers: whether a scan may begin with a state, and forget.
    """

    module: str
    summary: str
    install: str
    device: Literal["cpu", "cuda"] | None
    functions: tuple[str, ...] = (SCAN, STEP, CONV, CONV_STEP)
    remembers: bool = True


_KERNELS: Mapping[str, _Kernel] = {
    "cpu": _Kernel("icrl_agents.kernels.cpu", "numba", "pip install numba", "cpu"),
    "triton": _Kernel(
        "icrl_agents.kernels.triton", "Triton", "comes with PyTorch for CUDA; or pip install triton", "cuda"
    ),
    # behind triton, since it serves fewer calls and copies every argument into its own layout
    "mamba-ssm": _Kernel(
        "icrl_agents.kernels.mamba_ssm",
        "the authors' CUDA code",
        "needs nvcc: pip install --no-build-isolation 'icrl-agents[cuda]'",
        "cuda",
        (SCAN, STEP),
        remembers=False,
    ),
    "reference": _Kernel("icrl_agents.kernels.reference", "plain PyTorch", "", None),
}
"""The fastest first, on GPUs by what they promise: none was measured there. The last serves everything."""


_forced: ContextVar[str | None] = ContextVar("forced kernel", default=None)


@dataclass(frozen=True)
class KernelStatus:
    """A kernel on this machine.

    Attributes:
        name: what ``kernel=`` and ``ICRL_KERNEL`` call it.
        state: ``"in use"`` if it runs float32 scans on the CPU or the GPU, ``"available"`` if something faster does,
            ``"unavailable"`` if it cannot run.
        detail: what it runs, or why it does not.
    """

    name: str
    state: Literal["in use", "available", "unavailable"]
    detail: str


def choose(name: str | None, function: str, *tensors: Tensor | None, remembers: bool = False) -> ModuleType:
    """The module whose ``function`` runs these tensors.

    Args:
        name: a kernel, or None.
        function: of a kernel.
        tensors: all real arguments.
        remembers: a scan that begins with a state, or forgets.

    Raises:
        UnknownNameError: no such kernel.
        ConfigError: a kernel was named that is not there or does not serve this call.
    """
    named, source = _named(name)
    if named is not None and (name or function in _KERNELS[named].functions):
        why_not = _refusal(named, function, tensors, remembers) or why_unavailable(named)
        if why_not:
            others = ", ".join(_servers(function, tensors, remembers))
            raise ConfigError(f"{source}{named} cannot run {function}: {why_not}. These can: {others}")
        return _load(named)[0] or import_module(_KERNELS[named].module)
    return _fastest(function, *tensors, remembers=remembers)


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Inside, in this thread alone, ``name`` is what ``ICRL_KERNEL`` would say.

    Raises:
        UnknownNameError: no such kernel.
    """
    _named(name)
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def available_kernels() -> tuple[str, ...]:
    """The kernels that can run here, the fastest first."""
    return tuple(name for name in _KERNELS if not why_unavailable(name))


def named_kernel() -> str | None:
    """The kernel that ``ICRL_KERNEL``, or :func:`forced_kernel` in its place, names, if any.

    Raises:
        UnknownNameError: no such kernel.
    """
    return _named(None)[0]


def compiled() -> bool:
    """Whether float32 on the CPU runs compiled: numba is there, and ``ICRL_KERNEL`` names no other kernel."""
    return named_kernel() in (None, "cpu") and _load("cpu")[0] is not None


def kernel_status() -> tuple[KernelStatus, ...]:
    """Every kernel, the fastest first: whether it is in use here, and if not, why.

    Raises:
        UnknownNameError: ``ICRL_KERNEL`` names no kernel.
    """
    named, source = _named(None)
    runs: dict[str, list[str]] = {}
    for device, place in (("cpu", "the CPU"), ("cuda", "the GPU"))[: 2 if torch.cuda.is_available() else 1]:
        example = torch.empty(0, device=device)
        servers = list(_servers(SCAN, (example,), False)) if named is None else [named]
        if servers[0] in _servers(SCAN, (example,), False):
            runs.setdefault(servers[0], []).append(f"float32 on {place}")
    rows = []
    for name, kernel in _KERNELS.items():
        why_not = why_unavailable(name)
        if why_not:
            rows.append(KernelStatus(name, "unavailable", why_not))
        elif name in runs:
            by = f", as {source}{name} says" if named else ""
            rows.append(KernelStatus(name, "in use", f"{kernel.summary}; {' and '.join(runs[name])}{by}"))
        else:
            served = f"float32 on {kernel.device}" if kernel.device else "any real dtype on any device"
            reason = f"{source}{named} goes before it" if named else "for what the ones above it do not serve"
            rows.append(KernelStatus(name, "available", f"{kernel.summary}; serves {served}; {reason}"))
    return tuple(rows)


def why_unavailable(name: str) -> str:
    """Why a kernel cannot run on this machine; empty if it can."""
    kernel = _KERNELS[name]
    if kernel.device == "cuda" and _device(name) == "cuda" and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here"
    return _load(name)[1]


def _named(name: str | None) -> tuple[str | None, str]:
    """The kernel that was asked for, if any, and how."""
    forced = name or _forced.get()
    named, source = (forced, "kernel=") if forced else (os.environ.get(VARIABLE) or None, f"{VARIABLE}=")
    if named is not None and named not in _KERNELS:
        raise UnknownNameError("kernel", named, _KERNELS)
    return named, source


def _fastest(function: str, *tensors: Tensor | None, remembers: bool) -> ModuleType:
    missing: list[str] = []
    for name, kernel in _KERNELS.items():
        if _refusal(name, function, tensors, remembers):
            continue
        module, why_not = _load(name)
        if module is not None:
            if not kernel.install and missing:
                _warn_once(missing[0])
            return module
        missing.append(f"{name}: {why_not}")
    raise AssertionError("the reference serves everything")


def _servers(function: str, tensors: tuple[Tensor | None, ...], remembers: bool) -> Iterator[str]:
    """Kernels that could run this here, the fastest first."""
    for name in _KERNELS:
        if not (_refusal(name, function, tensors, remembers) or why_unavailable(name)):
            yield name


def _refusal(name: str, function: str, tensors: tuple[Tensor | None, ...], remembers: bool) -> str:
    """Why a kernel does not serve a call; empty if it does."""
    kernel = _KERNELS[name]
    if function not in kernel.functions:
        return f"it has only {' and '.join(kernel.functions)}"
    if kernel.device is not None:
        device = _device(name)
        for t in tensors:
            if t is not None and (t.dtype != torch.float32 or t.device.type != device):
                return f"it takes float32 on {device}, got {str(t.dtype).removeprefix('torch.')} on {t.device.type}"
    if remembers and not kernel.remembers:
        return "it knows neither initial states nor forgetting"
    return ""


def _device(name: str) -> str | None:
    """Where a kernel runs: Triton's interpreter runs on the CPU."""
    interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return "cpu" if interpreted else _KERNELS[name].device


@cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    """A kernel's module, or why it cannot be imported."""
    kernel = _KERNELS[name]
    try:
        return import_module(kernel.module), ""
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed ({kernel.install})"
    except Exception as error:  # a binary built for another PyTorch fails in many ways
        first_line = str(error).partition("\n")[0]
        return None, f"its import failed with {type(error).__name__}: {first_line}"


@cache
def _warn_once(missing: str) -> None:
    warnings.warn(f"running the slow reference kernel instead of {missing}", stacklevel=5)
