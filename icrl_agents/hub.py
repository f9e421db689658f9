"""Checkpoints: from a name, here or on the Hugging Face Hub, to a directory, from a directory to a model, and back.

A checkpoint is a directory of up to seven files::

    config.json         AgentConfig
    model.safetensors   the weights
    README.md           model card
    evaluation.json     measured returns (optional)
    training.json       what reproduces it (optional)
    curve.png           the measured returns, drawn (optional)
    replay.mp4          a film of the agent, which you may put there (optional)

Loading is strict: names, shapes and dtypes of all tensors are compared with the config before anything is
allocated, and no file can make it run code: environments and backbones are looked up by name among those that
are registered.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from icrl_agents.atomic import write_atomically, write_text_atomically
from icrl_agents.backbones import carry_bytes
from icrl_agents.config import AgentConfig, ModelConfig, from_dict, load_json, to_dict
from icrl_agents.errors import CheckpointError, ConfigError, IcrlError, InputError, NotFiniteError, UnknownNameError
from icrl_agents.model import InContextModel
from icrl_agents.model_card import model_card, quoted

STATISTICS = ("token_mean", "token_std")  # saved with the weights, but no parameters
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
EVALUATION_FILE = "evaluation.json"
TRAINING_FILE = "training.json"
CURVE_FILE = "curve.png"
REPLAY_FILE = "replay.mp4"
CHECKPOINT_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, EVALUATION_FILE, TRAINING_FILE, CURVE_FILE, REPLAY_FILE)

MAX_CONFIG_BYTES = 1 << 20
"""A larger config.json is refused unread."""

MAX_HEADER_BYTES = 1 << 20
"""Weights whose list of tensors is longer are refused unread."""

MAX_TENSORS = 4096
"""A list of more tensors is refused: a config may ask for at most as many layers, which are built to be compared."""

MAX_CARRY_BYTES = 1 << 30
"""A config whose memory of one row would be larger is refused."""

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class IndexEntry:
    """Where a bundled name's checkpoint is: in the package, or on the Hub.

    Attributes:
        bundled: directory inside ``icrl_agents/checkpoints``.
        repo: Hub id ``"org/name"``.
        revision: commit on the Hub.
        sha256: of ``model.safetensors``; compared whenever the name is resolved, but for another revision.
    """

    bundled: str | None = None
    repo: str | None = None
    revision: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.bundled is None) == (self.repo is None):
            raise ConfigError("an entry of index.json has either 'bundled' or 'repo'")


def agent_names() -> tuple[str, ...]:
    """Names of the agents that come with the package, sorted."""
    return tuple(sorted(index()))


class AgentSummary(NamedTuple):
    """A bundled agent in words, ``"-"`` where its files are not on this machine.

    Attributes:
        name: for ``from_pretrained``.
        env_id: what it acts in.
        backbone: of its model.
        parameters: of its model.
        final_normalized: normalized return of the last measured episodes, mean over tasks with its interval.
    """

    name: str
    env_id: str
    backbone: str
    parameters: str
    final_normalized: str


def bundled_agents() -> list[AgentSummary]:
    """The agents that come with the package, by name; nothing is downloaded."""
    return [_summary(name, entry) for name, entry in sorted(index().items())]


def resolve(name: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The directory of a checkpoint.

    Args:
        name: a directory, a bundled name, or a Hub id ``"org/name"``, tried in this order.
        revision: branch, tag or commit; only what is on the Hub has one.
        token: for the Hub's private repositories; default: that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UnknownNameError: none of the three.
        InputError: neither text nor a path.
        CheckpointError: the Hub has no such checkpoint or cannot be reached, or the weights are not those pinned.
        ConfigError: a ``revision`` of something that is not on the Hub.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"expected an agent's name or directory, got {name!r}")
    text = str(name)
    if text and Path(name).expanduser().is_dir():
        _refuse_revision(text, revision)
        return Path(name).expanduser()
    known = index()
    if text in known:
        entry = known[text]
        if entry.bundled is not None:
            _refuse_revision(text, revision)
            directory = packaged() / entry.bundled
        else:
            assert entry.repo is not None
            directory = _download(entry.repo, revision or entry.revision, token)
        if revision is None and entry.sha256 is not None:
            _require_digest(directory / WEIGHTS_FILE, entry.sha256)
        return directory
    if isinstance(name, str) and _REPO_ID.fullmatch(name):
        return _download(name, revision, token)
    raise UnknownNameError("agent", text, known, "There is no directory of that name either.")


def load_checkpoint(directory: str | Path) -> tuple[InContextModel, AgentConfig]:
    """Read a checkpoint, strictly.

    Returns:
        The model on the CPU, in evaluation mode, and its config.

    Raises:
        ConfigError: ``config.json`` is missing or does not fit :class:`~icrl_agents.config.AgentConfig`.
        CheckpointError: the weights are missing, damaged, not finite, or do not fit the config, or tokens would be
            divided by something that is not positive.
    """
    directory = Path(directory)
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if config_file.exists() and config_file.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{config_file} is larger than {MAX_CONFIG_BYTES} bytes: not a config")
    config = load_json(AgentConfig, config_file)
    found = _header(weights_file)
    if not 0 < len(found) <= MAX_TENSORS:
        raise CheckpointError(f"{weights_file} holds {len(found)} tensors; expected from 1 to {MAX_TENSORS}")
    _require_layout(weights_file, found, _expected_layout(config.model, len(found)))
    # The initial weights are overwritten: they cost the caller none of his random numbers. Weights made in inference
    # mode could neither be trained nor packed for fast steps.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        model = InContextModel(config.model).float()  # whatever PyTorch's default is
        weights = load_file(weights_file)
        _require_usable(weights, str(weights_file))
        model.load_state_dict(weights, strict=True)
    return model.eval(), config


def load_training_record(directory: str | Path) -> dict[str, Any] | None:
    """What reproduces a checkpoint: the contents of its ``training.json``; None where it has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    return _read_json(Path(directory) / TRAINING_FILE)


def save_checkpoint(
    directory: str | Path,
    model: InContextModel,
    config: AgentConfig,
    *,
    evaluation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write a checkpoint; each file is replaced atomically.

    Over a checkpoint with the same weights, an evaluation, training record or picture that is not given stays. Over one
    with other weights it is deleted, because it does not speak of these.

    Args:
        directory: made if need be.
        model: built from ``config.model``.
        config: what the agent was trained for.
        evaluation: contents of ``evaluation.json``, as ``icrl-agents evaluate --json`` writes it.
        training: contents of ``training.json``: what reproduces the agent.
        card: text of ``README.md``; default: :func:`~icrl_agents.model_card.model_card`.

    Raises:
        ConfigError: ``model`` was not built from ``config.model``, or the directory holds no checkpoint, but files of a
            checkpoint's names.
        CheckpointError: weights that could not be loaded again, or a file that stays is damaged.
    """
    directory = Path(directory)
    if to_dict(model.config) != to_dict(config.model):
        raise ConfigError(f"the model was built from {model.config}, not from {config.model}")
    weights = {name: t.detach().cpu().clone().contiguous() for name, t in model.state_dict().items()}
    _require_usable(weights, f"nothing was saved to {directory}")
    content = save(weights, {"format": "pt"})
    before = _digest(directory / WEIGHTS_FILE)
    if before == sha256(content).hexdigest():
        evaluation = _read_json(directory / EVALUATION_FILE) if evaluation is None else evaluation
        training = _read_json(directory / TRAINING_FILE) if training is None else training
    elif before is None or not _is_ours(directory):
        texts = (CARD_FILE, CONFIG_FILE, EVALUATION_FILE, TRAINING_FILE)
        drawn = (CURVE_FILE, REPLAY_FILE) if evaluation is None else ()  # else drawn for these weights
        theirs = [file for file in (WEIGHTS_FILE, *texts, *drawn) if (directory / file).exists()]
        if theirs:
            raise ConfigError(f"{directory} holds {', '.join(theirs)}, and no checkpoint; choose another directory")
    else:  # before the weights, so that no kill leaves the new ones beside what was said of the old ones
        for file in (CARD_FILE, EVALUATION_FILE, TRAINING_FILE, CURVE_FILE, REPLAY_FILE):
            (directory / file).unlink(missing_ok=True)
    figure, video = (file if (directory / file).is_file() else None for file in (CURVE_FILE, REPLAY_FILE))
    card = card or model_card(config, evaluation, training, figure, video)
    written = {CONFIG_FILE: _json(to_dict(config)), CARD_FILE: card}
    if evaluation is not None:
        written[EVALUATION_FILE] = _json(evaluation)
    if training is not None:
        written[TRAINING_FILE] = _json(training)
    write_atomically(directory / WEIGHTS_FILE, lambda path: path.write_bytes(content))
    for file, text in written.items():
        write_text_atomically(directory / file, text)


@contextmanager
def asking_the_hub(failed: str) -> Iterator[None]:
    """Whatever stops the Hub's client becomes a CheckpointError that says what failed."""
    try:
        yield
    except IcrlError:
        raise
    except Exception as error:  # the client's transport, and with it the class of its errors, changes by version
        raise CheckpointError(f"{failed}: {str(error) or type(error).__name__}") from error


def packaged() -> Path:
    """Where the bundled checkpoints and their index are."""
    return Path(str(files("icrl_agents.checkpoints")))


def index() -> dict[str, IndexEntry]:
    """Name -> where that agent's checkpoint is."""
    entries = json.loads((packaged() / "index.json").read_text(encoding="utf-8"))
    return {name: from_dict(IndexEntry, entry, where=name) for name, entry in entries.items()}


def _summary(name: str, entry: IndexEntry) -> AgentSummary:
    if entry.bundled is None:
        return AgentSummary(name, f"on the Hub: {entry.repo}", "-", "-", "-")
    directory = packaged() / entry.bundled
    config = load_json(AgentConfig, directory / CONFIG_FILE)
    weights = _header(directory / WEIGHTS_FILE)
    parameters = sum(math.prod(shape) for name, (shape, _) in weights.items() if name not in STATISTICS)
    summary = (_read_json(directory / EVALUATION_FILE) or {}).get("summary") or {}
    final = quoted(summary["final_normalized"]) if "final_normalized" in summary else "-"
    return AgentSummary(name, config.env_id, config.model.backbone, f"{parameters:,}", final)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(f"{name!r} is on this machine and has no revision {revision!r}")


def _is_ours(directory: Path) -> bool:
    """Whether the weights in a directory are an agent's, by its config or, where a kill came before that, by names."""
    try:
        load_json(AgentConfig, directory / CONFIG_FILE)
    except ConfigError:
        try:
            return set(STATISTICS) <= set(_header(directory / WEIGHTS_FILE))
        except CheckpointError:
            return False
    return True


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """A snapshot of the checkpoint's files in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision!r}" if revision else ""
    with asking_the_hub(f"{repo_id!r}{at} could not be downloaded from the Hub"):
        try:
            return Path(
                snapshot_download(repo_id, revision=revision, allow_patterns=list(CHECKPOINT_FILES), token=token)
            )
        except LocalEntryNotFoundError as error:
            raise CheckpointError(
                f"there is no directory {repo_id!r} here, the local cache does not have it, and the Hub cannot be "
                f"reached; without it there are {', '.join(agent_names())}: {error}"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise CheckpointError(
                f"no checkpoint {repo_id!r}{at} on the Hub, or a private one and no token that may read it "
                f"(hf auth login, HF_TOKEN or token=), and no directory {repo_id!r} here; without the Hub there are "
                f"{', '.join(agent_names())}: {error}"
            ) from error


def _require_digest(path: Path, expected: str) -> None:
    found = _digest(path)
    if found is None:
        raise CheckpointError(f"{path} does not exist")
    if found != expected:
        raise CheckpointError(f"{path} has SHA-256 {found}, expected {expected}")


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _require_usable(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Nothing that would make an agent's actions NaN."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise NotFiniteError(f"{where}: {name} holds values that are not finite")
    if not (weights["token_std"] > 0).all():
        raise CheckpointError(f"{where}: token_std holds values that are not above 0, and tokens are divided by it")


Layout = dict[str, tuple[tuple[int, ...], str]]
"""Tensor name -> shape and safetensors dtype."""


def _header(path: Path) -> Layout:
    """What a safetensors file says it holds; no tensor is read."""
    try:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} is not a whole safetensors file (pickles are never read): it begins as if it "
                f"listed tensors in {length} bytes, at most {MAX_HEADER_BYTES} are allowed"
            )
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected the weights as safetensors") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file (pickles are never read): {error}") from None


def _expected_layout(config: ModelConfig, tensors: int) -> Layout:
    """What a model of this config holds, found without allocating it."""
    for name, layers in (("n_layers", config.backbone_options.get("n_layers")), ("head_layers", config.head_layers)):
        if isinstance(layers, int) and layers > tensors:
            raise CheckpointError(f"{name} is {layers}, but the weights are only {tensors} tensors")
    try:
        with torch.device("meta"):
            model = InContextModel(config).float()
            carry = carry_bytes(model.backbone.initial_carry(1, device="meta"))
    except IcrlError:
        raise
    except (ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"no {config.backbone} model has these sizes: {config}: {error}") from error
    if carry > MAX_CARRY_BYTES:
        raise ConfigError(f"one row's memory would be {carry} bytes; at most {MAX_CARRY_BYTES} are allowed")
    return {name: (tuple(t.shape), _DTYPES[t.dtype]) for name, t in model.state_dict().items()}


def _require_layout(path: Path, found: Layout, expected: Layout) -> None:
    missing, foreign = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or foreign:
        raise CheckpointError(
            f"{path} does not fit its config: missing {missing[:5] or 'none'}, unexpected "
            f"{foreign[:5] or 'none'} ({len(missing)} and {len(foreign)} tensors)"
        )
    for name, (shape, dtype) in expected.items():
        if found[name] != (shape, dtype):
            raise CheckpointError(
                f"{path} does not fit its config: {name} is {found[name][1]}{list(found[name][0])}, "
                f"expected {dtype}{list(shape)}"
            )


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"


def _read_json(path: Path) -> dict[str, Any] | None:
    """What :func:`_json` wrote; None if there is no such file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected an object, got {type(data).__name__}")
    return data
