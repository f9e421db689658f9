"""Datasets of learning histories on the Hugging Face Hub, as dataset repositories.

What the manifest names is pushed, with a card; what is pulled is compared with the manifest's checksums before the
manifest itself is put in its place, so a directory becomes a dataset when all of it has arrived whole.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from icrl_agents.atomic import write_text_atomically
from icrl_agents.errors import DatasetError, IcrlError
from icrl_agents.publishing import make_repository
from icrl_agents.training.histories import HistoryDataset
from icrl_agents.training.lock import DirectoryLock
from icrl_agents.training.manifest import MANIFEST_FILE, Manifest, check_content, load_manifest

CARD_FILE = "README.md"

_FOLDERS = ("shards", "snapshots")


def push_dataset(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a dataset.

    Args:
        directory: of the dataset; read and verified first, so that nothing broken is published. A ``README.md`` of
            yours there is its card.
        repo_id: ``"org/name"``; made if need be. What it held before is replaced.
        private: only for those that may see it; default: as its owner has new ones set.
        revision: branch to upload to, made if need be; default: main.
        token: of the Hub; default: that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        Address of the commit.

    Raises:
        DatasetError: the dataset is damaged or not complete, or the Hub refused it.
        ConfigError: it is to be private, and is there and public.
    """
    directory = Path(directory)
    dataset = HistoryDataset(directory)
    dataset.verify()
    card = dataset_card(dataset.manifest, repo_id)
    here = directory / CARD_FILE
    if not here.exists() or _of_any(here.read_text(encoding="utf-8")) == _of_any(card):
        write_text_atomically(here, card)
    from huggingface_hub import HfApi  # half a second that only those pay who push or pull

    api = HfApi(token=token)
    with _asking_the_hub(f"the dataset {repo_id!r} could not be made or found on the Hub"):
        make_repository(api, repo_id, private, "dataset")
    if revision is not None:
        with _asking_the_hub(f"the branch {revision!r} of {repo_id!r} could not be made on the Hub"):
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
    with _asking_the_hub(f"{directory} could not be uploaded to {repo_id!r} on the Hub"):
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=directory,
            revision=revision,
            allow_patterns=[*_files(dataset.manifest), MANIFEST_FILE],
            delete_patterns=[f"{folder}/*" for folder in _FOLDERS],
            commit_message="Upload icrl-agents learning histories",
        )
    return commit.commit_url


def pull_dataset(
    repo_id: str, directory: str | Path, *, revision: str | None = None, token: str | None = None
) -> HistoryDataset:
    """Download a dataset, or go on with a download that was interrupted.

    Args:
        repo_id: ``"org/name"``.
        directory: for the dataset, made if need be.
        revision: branch, tag or commit; default: main.
        token: of the Hub, for private datasets; default: that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        The dataset, every file compared with its checksum.

    Raises:
        DatasetError: the Hub has no such dataset or cannot be reached, files arrived damaged, or the directory holds
            another dataset or is in use.
    """
    directory = Path(directory)
    at = f" at revision {revision!r}" if revision else ""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with _asking_the_hub(f"{repo_id!r}{at} is no dataset of learning histories that can be fetched from the Hub"):
        commit = HfApi(token=token).dataset_info(repo_id, revision=revision).sha  # everything from one commit
        manifest_file = Path(hf_hub_download(repo_id, MANIFEST_FILE, repo_type="dataset", revision=commit, token=token))
    manifest = load_manifest(manifest_file.parent)
    if not manifest.progress.complete:
        raise DatasetError(f"{repo_id!r}{at} is a collection that was not complete when it was uploaded")
    with DirectoryLock(directory):
        if (directory / MANIFEST_FILE).exists():
            if load_manifest(directory).digest() != manifest.digest():
                raise DatasetError(f"{directory} holds another dataset; choose another directory")
        else:
            theirs = [file for file in _files(manifest) if (directory / file).exists()]
            if theirs and not (directory / ".cache/huggingface/download").is_dir():  # no download that was interrupted
                raise DatasetError(f"{directory} holds {theirs[0]} and is no dataset; choose another directory")
            with _asking_the_hub(f"{repo_id!r}{at} could not be downloaded from the Hub"):
                snapshot_download(
                    repo_id,
                    repo_type="dataset",
                    revision=commit,
                    local_dir=directory,
                    allow_patterns=_files(manifest),
                    token=token,
                )
            _delete_damaged(directory, manifest)
            write_text_atomically(directory / MANIFEST_FILE, manifest_file.read_text(encoding="utf-8"))
            _delete_notes(directory / ".cache/huggingface")
    dataset = HistoryDataset(directory)
    dataset.verify()
    return dataset


def _delete_notes(folder: Path) -> None:
    """The client's notes on what it fetched, and no more: in a home directory its own cache lies beside them."""
    for name in ("download", "trees"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if any(path.is_dir() for path in folder.iterdir()):
        return
    for name in (".gitignore", "CACHEDIR.TAG"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()
        folder.parent.rmdir()


def dataset_card(manifest: Manifest, repo_id: str) -> str:
    """``README.md`` of a dataset repository ``"org/name"``: what the manifest says, in words."""
    progress = manifest.progress
    mean = sum(progress.final_returns) / max(1, len(progress.final_returns))
    megabytes = sum(entry.size for entry in progress.files) / 1e6
    return f"""---
tags:
- reinforcement-learning
- in-context-learning
- icrl-agents
---

# Learning histories of {manifest.source} on {manifest.env_id}

What a source algorithm saw and did while it learned, task by task, for distilling an agent that learns in context.

| | |
|---|---|
| environment | `{manifest.env_id}`, MuJoCo {manifest.mujoco_version} |
| tasks | {len(manifest.tasks)} ({manifest.subset} of split `{manifest.split}`, hash `{manifest.split_hash}`) |
| histories | {manifest.histories} of {progress.steps:,} steps, {manifest.streams_per_task} a task |
| policy snapshots | {len(progress.snapshots)} |
| final return of the source, mean over tasks | {mean:.2f} |
| seed | {manifest.seed} |
| size | {megabytes:,.1f} MB |
| digest | `{manifest.digest()}` |

```python
from icrl_agents.training.dataset_hub import pull_dataset

dataset = pull_dataset("{repo_id}", "data/histories")  # compares every file with its checksum
history = dataset.history(0)  # observations, actions, rewards, ... of whole episodes
```
"""


def _of_any(card: str) -> str:
    """A card without the name of its repository."""
    return re.sub(r'pull_dataset\("[^"]*"', "pull_dataset(", card)


def _files(manifest: Manifest) -> list[str]:
    """What travels beside the manifest."""
    return [CARD_FILE, *(entry.file for entry in manifest.progress.files)]


def _delete_damaged(directory: Path, manifest: Manifest) -> None:
    """Files that arrived damaged are fetched anew by the next attempt, which would otherwise keep them."""
    damaged = []
    for entry in manifest.progress.files:
        try:
            check_content(directory, [entry])
        except DatasetError:
            (directory / entry.file).unlink(missing_ok=True)
            damaged.append(entry.file)
    if damaged:
        shown = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
        raise DatasetError(f"{directory}: {shown} did not arrive whole; the same command fetches again what is missing")


@contextmanager
def _asking_the_hub(failed: str) -> Iterator[None]:
    """Whatever stops the Hub's client becomes a DatasetError that says what failed."""
    try:
        yield
    except IcrlError:
        raise
    except Exception as error:  # the client's transport, and with it the class of its errors, changes by version
        raise DatasetError(f"{failed}: {str(error) or type(error).__name__}") from error
