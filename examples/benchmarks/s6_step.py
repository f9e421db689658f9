"""Time of one inference step of a Mamba: packed precisions, the best matrix-vector product over the same bytes, peers.

Contenders take turns, so that a busy machine slows all of them; the table has each one's best and median time and the
ratio of both to the packed float32 step. Before each turn there is a pause, because OpenMP's threads go on spinning for
some milliseconds on the cores that the next contender needs, and then a step that nobody times. Peers: see rivals.py.
``OMP_NUM_THREADS=1`` gives the times on one thread, which depend less on what else runs.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rivals import Rival, others

from icrl_agents import InContextAgent
from icrl_agents.backbones.mamba import Mamba, MambaConfig
from icrl_agents.kernels import cpu_step
from icrl_agents.kernels.threads import run_pieces

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--d-model", type=int, default=512)
parser.add_argument("--n-layers", type=int, default=8)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rounds", type=int, default=60)
parser.add_argument("--peers", metavar="FOLDER", help="where pip put mambapy and transformers (--target)")
parser.add_argument("--agent", default="reacher-goal-mamba", help="whose action error to report; empty: nobody's")
arguments = parser.parse_args()
if arguments.peers:
    sys.path.append(arguments.peers)
PAUSE = 0.05  # seconds
PRECISIONS = ("float32", "bfloat16", "int8")

torch.manual_seed(0)
config = MambaConfig(d_model=arguments.d_model, n_layers=arguments.n_layers)
backbone = Mamba(config).eval()
x = torch.randn(arguments.batch, config.d_model)
weights = sum(weight.numel() for weight in backbone.parameters())


def packed(precision: str) -> Callable[[], object]:
    """A step of ours."""
    pack, carry = backbone.pack(precision), backbone.initial_carry(arguments.batch)
    return lambda: pack.step(x, carry)


def panels() -> Callable[[], object]:
    """The same bytes as panels of ``d_model`` inputs, on PyTorch's threads."""
    size, lanes = config.d_model, cpu_step.LANES
    count = weights // (size * lanes)
    matrix = np.random.default_rng(0).standard_normal((count, size * lanes), np.float32)
    scale, out, inputs = np.ones(lanes, np.float32), np.empty((count, 1, lanes), np.float32), x[:1].numpy()

    @cpu_step.loop
    def products(first, last, inputs, matrix, scale, out):
        for i in range(first, last):
            cpu_step.multiply(inputs, 0, matrix[i], 0, inputs.shape[1], scale, out[i])

    return lambda: run_pieces(products, count, size * lanes, inputs, matrix, scale, out)


def torch_mv() -> Callable[[], object]:
    """The same bytes as one ``torch.mv``."""
    matrix, vector = torch.randn(weights // config.d_model, config.d_model), x[0].clone()
    return lambda: torch.mv(matrix, vector)


def foreign(make: Callable[[], Rival]) -> Callable[[], object]:
    """A step of another package's Mamba."""
    rival = make()
    rival.live(0, 0)
    return lambda: rival.step(x)


def per_op() -> Callable[[], object]:
    """Our step one operation after the other."""
    carry = backbone.initial_carry(arguments.batch)

    def step() -> None:
        nonlocal carry
        _, carry = backbone.step_by_layers(x, carry)

    return step


def action_error(agent: InContextAgent, precision: str, steps: int = 200) -> float:
    """Largest difference of actions over a random life, in units of the range of actions."""
    model, rng = agent.model, np.random.default_rng(0)
    low, high = np.array(agent.config.action_low), np.array(agent.config.action_high)
    tokens = model.token_mean + model.token_std * torch.tensor(
        rng.standard_normal((steps, len(model.token_mean))), dtype=torch.float32
    )
    actions = []
    for step in (model.backbone.step, model.backbone.pack(precision).step):
        model.backbone.step = step
        carry = model.backbone.initial_carry(1)
        lived = []
        for token in tokens:
            prediction, carry = model.step(token.unsqueeze(0), carry)
            lived.append(prediction.mean[0].numpy().clip(low, high))
        actions.append(np.array(lived))
    del model.backbone.step
    return float(np.max(np.abs(actions[0] - actions[1]) / (high - low)))


def microseconds(step: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append((time.perf_counter() - started) * 1e6)
    return times


agent = InContextAgent.from_pretrained(arguments.agent, device="cpu") if arguments.agent else None
with torch.inference_mode():
    contenders = {f"packed {precision}": packed(precision) for precision in PRECISIONS}
    contenders |= {"one operation after the other": per_op()}
    contenders |= {"matrix-vector product, panels": panels(), "matrix-vector product, torch.mv": torch_mv()}
    if arguments.batch == 1:
        contenders |= {name: foreign(make) for name, make in others(config.d_model, config.n_layers).items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in contenders.values():
        microseconds(step, 3)
    for _ in range(arguments.rounds):
        for name, step in contenders.items():
            time.sleep(PAUSE)
            microseconds(step, 1)
            times[name] += microseconds(step, 5)
    best, median = min(times["packed float32"]), np.median(times["packed float32"])
    print(f"{weights / 1e6:.2f} M weights, batch {arguments.batch}, {torch.get_num_threads()} threads")
    print(f"{'':34} {'best us':>9} {'ratio':>6} {'median us':>9} {'ratio':>6}")
    for name, taken in times.items():
        least, usual = min(taken), np.median(taken)
        print(f"{name:34} {least:9.1f} {least / best:6.2f} {usual:9.1f} {usual / median:6.2f}")
    if agent is not None:
        for precision in PRECISIONS[1:]:
            error = action_error(agent, precision)
            print(f"{arguments.agent}, {precision}: largest action error {error:.1e} of the range")
