"""What a dataset of learning histories says about itself: ``manifest.json`` as frozen dataclasses.

The manifest is also what is committed: only files that it names are part of the dataset. It holds their checksums, and
its own under ``checksum``, so that damage anywhere is found before anything is read as experience.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icrl_agents.atomic import write_text_atomically
from icrl_agents.config import from_dict, to_dict
from icrl_agents.errors import ConfigError, DatasetError

FORMAT_VERSION = 1
"""Version of the dataset format; a dataset with another one is refused."""

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class StoredFile:
    """A committed file.

    Attributes:
        file: path inside the dataset.
        size: bytes.
        sha256: of the content.
    """

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Shard(StoredFile):
    """An interval of all histories.

    Attributes:
        steps: steps of each history in it.
    """

    steps: int


@dataclass(frozen=True)
class Snapshot(StoredFile):
    """The source policies of all tasks at one moment.

    Attributes:
        step: steps per history taken before it.
    """

    step: int


@dataclass(frozen=True)
class Progress:
    """How far a collection has come: the part of a manifest that changes.

    Attributes:
        steps: committed steps per history.
        complete: the collector has finished.
        final_returns: mean return of the finished source policy, per task; empty until complete.
        shards: in time order.
        snapshots: in time order.
        state: file of the collector's state, as last committed; None at the start and once complete.
        state_sha256: of that file's content.
        learner: what one learner of all tasks knew at the end, its value function included; None where there was none.
    """

    steps: int = 0
    complete: bool = False
    final_returns: tuple[float, ...] = ()
    shards: tuple[Shard, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    state: str | None = None
    state_sha256: str | None = None
    learner: StoredFile | None = None

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All that a complete dataset consists of, beside its manifest."""
        return (*self.shards, *self.snapshots, *([] if self.learner is None else [self.learner]))


@dataclass(frozen=True)
class Manifest:
    """What a dataset is. History ``h`` is stream ``h % streams_per_task`` of task ``h // streams_per_task``.

    Attributes:
        env_id: Gymnasium id of the environment.
        env_options: keyword arguments for ``gymnasium.make``.
        mujoco_version: version of the physics.
        split: named task split.
        split_hash: content hash of that split.
        subset: part of the split the tasks are, e.g. ``"train"``.
        tasks: the tasks, JSON-able mappings.
        streams_per_task: environments that the source of one task learned from.
        episode_steps: horizon of one episode.
        observation_dim: N_o, entries of an observation.
        action_dim: N_a, entries of an action.
        source: name of the source algorithm.
        hyperparameters: all of its hyper-parameters, JSON-able.
        seed: of the collection.
        format_version: version of this format.
        progress: how far it has come.
    """

    env_id: str
    mujoco_version: str
    split: str
    split_hash: str
    subset: str
    tasks: tuple[Mapping[str, Any], ...]
    streams_per_task: int
    episode_steps: int
    observation_dim: int
    action_dim: int
    source: str
    hyperparameters: Mapping[str, Any]
    seed: int
    env_options: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    progress: Progress = Progress()

    @property
    def histories(self) -> int:
        """H, the number of histories."""
        return len(self.tasks) * self.streams_per_task

    def identity(self) -> dict[str, Any]:
        """All but the progress, as plain JSON data: collections with equal identities are the same one."""
        data = to_dict(self)
        del data["progress"]
        return json.loads(json.dumps(data))

    def digest(self) -> str:
        """Hash of the identity and of every file's content, to name the data in what is trained from it."""
        content = [self.identity(), [stored.sha256 for stored in self.progress.files]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def difference(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The entries in which two mappings of JSON data differ, readable: ``"a.seed (there 1, here 2)"``."""
    found = []
    for key in sorted({*there, *here}):
        sides = [side.get(key) for side in (there, here)]
        if sides[0] == sides[1] and (key in there) == (key in here):
            continue
        if all(isinstance(side, Mapping) for side in sides):
            found += difference(there[key], here[key], f"{prefix}{key}.")
            continue
        texts = [repr(side[key]) if key in side else "nothing" for side in (there, here)]
        shown = [text if len(text) <= 60 else text[:57] + "..." for text in texts]
        found.append(f"{prefix}{key} (there {shown[0]}, here {shown[1]})")
    return found


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest on disk: this commits what it names."""
    data = to_dict(manifest)
    write_text_atomically(directory / MANIFEST_FILE, json.dumps({**data, "checksum": _checksum(data)}, indent=1) + "\n")


def load_manifest(directory: Path) -> Manifest:
    """Read a dataset's manifest.

    Raises:
        DatasetError: there is none, it is damaged, of another format, or names files outside the dataset.
    """
    path = directory / MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{directory} is no dataset of learning histories: it has no manifest.json") from None
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise DatasetError(f"{path} is damaged: {error}") from None
    if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
        raise DatasetError(
            f"{path} has format_version {data.get('format_version')!r}; this version reads {FORMAT_VERSION}"
        )
    # The first datasets were written without a checksum; damage cannot turn one of today's into one of those.
    checksum = data.pop("checksum", None) if isinstance(data, dict) else None
    try:
        manifest = from_dict(Manifest, data, where=str(path))
    except ConfigError as error:
        raise DatasetError(f"damaged manifest: {error}") from None
    _check_paths(directory, manifest)
    if checksum is not None and checksum != _checksum(data):
        raise DatasetError(f"{path} is damaged: its content does not have its checksum")
    return manifest


def _checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of JSON data, however it is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_paths(directory: Path, manifest: Manifest) -> None:
    """A manifest from elsewhere must not make anyone read or delete outside its dataset."""
    progress = manifest.progress
    files = [entry.file for entry in progress.files]
    for file in [*files, *([progress.state] if progress.state else [])]:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise DatasetError(f"{directory / MANIFEST_FILE} names {file!r}, which is outside the dataset")


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Every named file is there and as long as it was: finds truncated copies without reading them.

    Raises:
        DatasetError: naming all that are not.
    """
    _refuse([found for entry in manifest.progress.files if (found := _wrong_size(directory, entry))])


def check_content(directory: Path, files: Sequence[StoredFile]) -> None:
    """Files hold what was written; reads them whole, at a gigabyte or so a second.

    Raises:
        DatasetError: naming all that do not.
    """
    damaged = []
    for entry in files:
        found = _wrong_size(directory, entry)
        try:
            if found is None and sha256_of(directory / entry.file) != entry.sha256:
                found = f"{directory / entry.file} is damaged: its sha256 is not the manifest's"
        except OSError as error:
            found = f"{directory / entry.file} cannot be read: {error}"
        if found is not None:
            damaged.append(found)
    _refuse(damaged)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong_size(directory: Path, entry: StoredFile) -> str | None:
    path = directory / entry.file
    size = path.stat().st_size if path.is_file() else None
    if size == entry.size:
        return None
    return f"{path} is damaged: expected {entry.size} bytes, " + (
        "it is missing" if size is None else f"it has {size} bytes"
    )


def _refuse(damaged: Sequence[str]) -> None:
    if damaged:
        rest = f" (and {len(damaged) - 3} more)" if len(damaged) > 3 else ""
        raise DatasetError("; ".join(damaged[:3]) + rest)
