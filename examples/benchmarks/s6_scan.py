"""Time of the selective scan alone, a token: every kernel that runs here, and a plain loop in C with ``expf``.

All take turns in one run on the same arguments; the table has best and median times and ratios to the best. The
reference runs forward only and in few turns: it is slow. Between two turns there is a pause, because OpenMP's threads
go on spinning for some milliseconds on the cores that the next contender needs, and then a call that nobody times, as
training does not pause either. The C version is compiled here by gcc where it is installed: vectorised over channels
by ``-O3 -ffast-math`` with the C library's ``expf``, one thread for each part of the batch, forward only.
"""

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from icrl_agents.kernels import selective_scan

LOOP = """
#include <math.h>
void scan(int batch, int length, int channels, int states, const float *u, const float *delta, const float *A,
          const float *B, const float *C, const float *D, const float *z, const float *bias, float *state, float *y) {
    #pragma omp parallel for
    for (int b = 0; b < batch; b++) {
        float *h = state + (long)b * states * channels;
        for (int t = 0; t < length; t++) {
            long row = (long)b * length + t;
            const float *x = u + row * channels, *d = delta + row * channels, *gate = z + row * channels;
            float *out = y + row * channels, dt[channels];
            #pragma omp simd
            for (int e = 0; e < channels; e++) {
                float v = d[e] + bias[e], positive = v > 0 ? v : 0;
                dt[e] = positive + logf(1 + expf(v - 2 * positive));
                out[e] = D[e] * x[e];
            }
            for (int n = 0; n < states; n++) {
                float in = B[row * states + n], to = C[row * states + n];
                #pragma omp simd
                for (int e = 0; e < channels; e++) {
                    float s = expf(dt[e] * A[n * channels + e]) * h[n * channels + e] + dt[e] * x[e] * in;
                    h[n * channels + e] = s;
                    out[e] += to * s;
                }
            }
            #pragma omp simd
            for (int e = 0; e < channels; e++) out[e] *= gate[e] / (1 + expf(-gate[e]));
        }
    }
}
"""

PAUSE = 0.05  # seconds
CALLS = 5  # that are timed in one turn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--length", type=int, default=1024)
parser.add_argument("--channels", type=int, default=256)
parser.add_argument("--states", type=int, default=16)
parser.add_argument("--turns", type=int, default=20)
parser.add_argument("--kernels", nargs="+", default=["cpu", "reference"])
arguments = parser.parse_args()
batch, length, channels, states = arguments.batch, arguments.length, arguments.channels, arguments.states

torch.manual_seed(0)
inputs = {
    "u": torch.randn(batch, length, channels),
    "delta": torch.randn(batch, length, channels),
    "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
    "B": torch.randn(batch, length, states),
    "C": torch.randn(batch, length, states),
    "D": torch.ones(channels),
    "z": torch.randn(batch, length, channels),
    "delta_bias": torch.full((channels,), -3.0),
}


def forward(kernel: str) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: selective_scan(**inputs, kernel=kernel)[0])


def both(kernel: str) -> Callable[[], Tensor]:
    """Forward and backward, every argument's gradient."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    direction = torch.randn(batch, length, channels)

    def run() -> Tensor:
        y, _ = selective_scan(**leaves, kernel=kernel)
        return torch.autograd.grad(y, list(leaves.values()), direction)[0]

    return run


def in_c(folder: Path) -> Callable[[], Tensor] | None:
    """The loop in C, compiled into ``folder``; None without gcc."""
    if shutil.which("gcc") is None:
        return None
    source, library = folder / "scan.c", folder / "scan.so"
    source.write_text(LOOP)
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library), "-lmvec", "-lm"], check=True)
    scan = ctypes.CDLL(str(library)).scan
    A, y = inputs["A"].t().contiguous(), torch.empty_like(inputs["u"])

    def run() -> Tensor:
        state = torch.zeros(batch, states, channels)
        order = [inputs[n] for n in ("u", "delta")] + [A] + [inputs[n] for n in ("B", "C", "D", "z", "delta_bias")]
        scan(batch, length, channels, states, *(ctypes.c_void_p(t.data_ptr()) for t in (*order, state, y)))
        return y

    return run


with tempfile.TemporaryDirectory() as folder:
    contenders: dict[str, Callable[[], Tensor]] = {}
    for kernel in arguments.kernels:
        contenders[f"{kernel}, forward"] = forward(kernel)
        if kernel != "reference":
            contenders[f"{kernel}, forward and backward"] = both(kernel)
    loop = in_c(Path(folder))
    if loop is None:
        print("gcc is not installed: no loop in C")
    else:
        contenders["C with expf, forward"] = loop
    expected = forward(arguments.kernels[0])()
    for name, run in contenders.items():
        if not name.endswith("backward"):
            error = ((run() - expected).abs().max() / expected.abs().max()).item()
            assert error < 1e-4, f"{name} is another function: {error}"
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(arguments.turns + 1):
        for name, run in contenders.items():
            if name.startswith("reference") and turn > 2:
                continue
            time.sleep(PAUSE)
            run()  # threads and caches wake up
            for _ in range(CALLS if turn else 0):
                started = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - started) / (batch * length) * 1e6)
best = min(min(taken) for taken in times.values())
print(f"B={batch}, L={length}, E={channels}, N={states}, {torch.get_num_threads()} threads; us a token")
print(f"{'':34} {'best':>9} {'median':>9} {'ratio':>7}")
for name, taken in times.items():
    print(f"{name:34} {min(taken):9.2f} {np.median(taken):9.2f} {min(taken) / best:7.1f}")
