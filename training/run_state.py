"""Where a training run stands: everything that a killed run needs to go on as if nothing had happened."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from icrl_agents.atomic import write_atomically, write_text_atomically
from icrl_agents.config import from_dict, to_dict
from icrl_agents.errors import ConfigError, DatasetError
from icrl_agents.hub import CHECKPOINT_FILES, CONFIG_FILE, WEIGHTS_FILE
from icrl_agents.training.lock import writing
from icrl_agents.training.manifest import MANIFEST_FILE, difference
from icrl_agents.training.optimizers import Optimizers
from icrl_agents.training.run_log import METRICS_FILE

STATE_FILE = "training_state.safetensors"
IDENTITY_FILE = "run.json"


@dataclass(frozen=True)
class RunState:
    """The part of a run's state that is not a tensor.

    Attributes:
        update: updates done.
        sampler: where the sampler of windows stands, see ``WindowSampler.state``.
        best_update: update of the best checkpoint so far; 0 before the first.
        best_score: its validation score.
        seconds: time spent, over all the processes that worked on the run.
    """

    update: int
    sampler: str
    best_update: int = 0
    best_score: float | None = None
    seconds: float = 0.0


def require_free_for_run(directory: Path) -> None:
    """Raise where a directory that is not that of a run holds what a run would replace.

    Raises:
        ConfigError: it does.
    """
    if (directory / IDENTITY_FILE).exists():
        return
    if (directory / MANIFEST_FILE).exists():
        raise ConfigError(f"{directory} holds a dataset; choose another directory")
    if (directory / CONFIG_FILE).exists():
        raise ConfigError(f"{directory} holds a checkpoint; choose another directory")
    theirs = [file for file in (*CHECKPOINT_FILES, METRICS_FILE, STATE_FILE) if (directory / file).exists()]
    if theirs:
        raise ConfigError(f"{directory} holds {', '.join(theirs)}, and no run; choose another directory")


def claim_run(directory: Path, identity: Mapping[str, Any]) -> None:
    """Make a directory that of a run, or check that it is. A run that never came to save anything is replaced.

    Args:
        directory: exists and is locked.
        identity: JSON data that two runs share only if they are the same run.

    Raises:
        ConfigError: it holds another run, or what is not of a run.
        DatasetError: nothing can be written there.
    """
    path = directory / IDENTITY_FILE
    here = json.loads(json.dumps(identity))
    if not path.exists():
        require_free_for_run(directory)
        with writing(directory):
            write_text_atomically(path, json.dumps(here, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise ConfigError(f"{path} is damaged: {error}") from None
    if not isinstance(there, dict):
        raise ConfigError(f"{path} is damaged: expected an object, got {type(there).__name__}")
    differing = difference(there, here)
    if not differing:
        return
    begun = (directory / STATE_FILE).exists() or (directory / WEIGHTS_FILE).exists()
    if begun or there.keys() != here.keys():
        raise ConfigError(f"{directory} holds another run, which differs in: {'; '.join(differing)}")
    with writing(directory):
        write_text_atomically(path, json.dumps(here, indent=2) + "\n")


def round_file(directory: Path, number: int) -> Path:
    """What a round of the run's own experience leaves, for a resumed run to go on from."""
    return directory / f"rounds/{number:05d}.safetensors"


def delete_rounds(directory: Path) -> None:
    """Delete what all rounds left, once the run is done."""
    folder = directory / "rounds"
    for path in folder.glob("[0-9]" * 5 + ".safetensors"):
        path.unlink()
    with suppress(OSError):  # not there, or it holds what is not ours
        folder.rmdir()


def save_run(directory: Path, state: RunState, model: nn.Module, optimizer: Optimizers) -> None:
    """Replace the saved state of a run.

    Raises:
        DatasetError: the disk is full; the state before is whole.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = optimizer.state
    for name, parameter in model.named_parameters():
        for key, value in moments.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    metadata = {"run": json.dumps(to_dict(state))}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with writing(directory):
        write_atomically(directory / STATE_FILE, lambda path: save_file(contiguous, path, metadata))


def load_run(directory: Path, model: nn.Module, optimizer: Optimizers) -> RunState | None:
    """Put a saved run back into its model and optimiser.

    Returns:
        The rest of its state; None if nothing was saved yet.

    Raises:
        DatasetError: the saved state is damaged, or is none.
    """
    path = directory / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = from_dict(RunState, json.loads((file.metadata() or {})["run"]), where=STATE_FILE)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        model.load_state_dict(own, strict=True)
        parameters = dict(model.named_parameters())
        moments = optimizer.state
        for key in (name for name in tensors if name.startswith("optimizer.")):
            _, moment, name = key.split(".", 2)
            device = "cpu" if moment == "step" else parameters[name].device  # AdamW counts its steps on the CPU
            moments[parameters[name]][moment] = tensors[key].to(device)
    except (SafetensorError, OSError, LookupError, RuntimeError, ValueError) as error:
        raise DatasetError(f"{path} is damaged or not of this run: {error}") from None
    return state
