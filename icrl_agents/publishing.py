"""Checkpoints on the Hugging Face Hub: one by one, or all that come with the package."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from icrl_agents.config import AgentConfig, load_json
from icrl_agents.errors import ConfigError, UnknownNameError
from icrl_agents.hub import (
    CARD_FILE,
    CHECKPOINT_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    asking_the_hub,
    index,
    load_checkpoint,
    packaged,
)
from icrl_agents.model_card import card_of_repository

# The Hub's client is imported on use: it takes half a second, and most users of an agent never publish one.
if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

PUBLIC = "{!r} is on the Hub, for everybody to see: make it private there, or choose another"

Outcome = Literal["created", "unchanged", "updated", "differs", "would be created", "would be updated"]


@dataclass(frozen=True)
class Published:
    """What was done for one agent.

    Attributes:
        name: of the agent.
        repo_id: where it is published.
        outcome: ``"differs"``: the repository holds other files, and they were left as they are.
        files: those that were, or would have to be, written or deleted.
        revision: the repository's commit afterwards; None where there is none.
        sha256: of the weights.
    """

    name: str
    repo_id: str
    outcome: Outcome
    files: tuple[str, ...]
    revision: str | None
    sha256: str


def push_to_hub(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a checkpoint to the Hugging Face Hub.

    The card's own code then loads it from there. Files of an earlier checkpoint that this one lacks are deleted there,
    because they do not speak of these weights; files that are no checkpoint's are left alone.

    Args:
        directory: a checkpoint; loaded first, so that nothing broken is published.
        repo_id: ``"org/name"``; made if need be.
        private: only for those that may see it; default: as its owner has new ones set.
        revision: branch to upload to, made if need be; default: main.
        token: default: that of ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        Address of the commit.

    Raises:
        ConfigError, CheckpointError: not a checkpoint, the Hub refused it, or the repository is public and was to be
            private.
    """
    contents = _contents(Path(directory), repo_id)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with asking_the_hub(f"the repository {repo_id!r} could not be made or found on the Hub"):
        make_repository(api, repo_id, private, "model")
    if revision is not None:
        with asking_the_hub(f"the branch {revision!r} of {repo_id!r} could not be made on the Hub"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    with asking_the_hub(f"{directory} could not be uploaded to {repo_id!r} on the Hub"):
        return _commit(api, repo_id, contents, _files_there(api, repo_id, revision) or {}, revision).commit_url


def publish_bundled(
    org: str,
    *,
    names: Iterable[str] = (),
    private: bool = False,
    update: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> Iterator[Published]:
    """Publish the agents that come with the package as ``ORG/NAME``, one by one.

    A repository that holds the same files is left alone, so an interrupted call goes on where it stopped. One that
    holds others is changed only if ``update`` says so.

    Args:
        org: user or organisation on the Hub.
        names: of the agents; none: all whose files are in the package.
        private: only for those that may see them; default: as their owner has new ones set.
        update: replace what differs.
        dry_run: say what would be done, and do nothing.
        token: default: that of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        UnknownNameError: an agent that is not in the package; before anything is done.
        ConfigError: ``org`` is no name, or a repository is public and was to be private.
        CheckpointError: the Hub cannot be reached or refused something.
    """
    directories = {name: packaged() / entry.bundled for name, entry in index().items() if entry.bundled is not None}
    chosen = sorted(set(names)) or sorted(directories)
    for name in chosen:
        if name not in directories:
            raise UnknownNameError("bundled agent", name, directories)
    if not org or "/" in org:
        raise ConfigError(f"expected the name of a user or organisation on the Hub, got {org!r}")
    return _publish_each({name: directories[name] for name in chosen}, org, private, update, dry_run, token)


def _publish_each(
    directories: Mapping[str, Path], org: str, private: bool, update: bool, dry_run: bool, token: str | None
) -> Iterator[Published]:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    for name, directory in directories.items():
        repo_id = f"{org}/{name}"
        contents = _contents(directory, repo_id)
        with asking_the_hub(f"{repo_id!r} could not be looked up on the Hub"):
            there = _files_there(api, repo_id, None)
            about = None if there is None else api.model_info(repo_id)
            revision = None if about is None else about.sha
        if private and about is not None and not about.private:
            raise ConfigError(PUBLIC.format(repo_id))
        files = tuple(_differing(contents, there or {}))
        new = there is None or not set(there) & set(CHECKPOINT_FILES)  # made, but not filled: interrupted
        outcome: Outcome = "unchanged"
        if files and dry_run:
            outcome = "would be created" if new else "would be updated" if update else "differs"
        elif files and (new or update):
            with asking_the_hub(f"{name} could not be uploaded to {repo_id!r} on the Hub"):
                make_repository(api, repo_id, private, "model")
                revision = _commit(api, repo_id, contents, there or {}, None).oid
            outcome = "created" if new else "updated"
        elif files:
            outcome = "differs"
        yield Published(name, repo_id, outcome, files, revision, sha256(contents[WEIGHTS_FILE]).hexdigest())


def _contents(directory: Path, repo_id: str) -> dict[str, bytes]:
    """The files of a checkpoint that loads, as they are published."""
    load_checkpoint(directory)
    contents = {file: (directory / file).read_bytes() for file in CHECKPOINT_FILES if (directory / file).is_file()}
    if CARD_FILE in contents:
        name = load_json(AgentConfig, directory / CONFIG_FILE).name
        card = contents[CARD_FILE].decode("utf-8", "surrogateescape")
        contents[CARD_FILE] = card_of_repository(card, name, repo_id).encode("utf-8", "surrogateescape")
    return contents


def make_repository(api: "HfApi", repo_id: str, private: bool, repo_type: Literal["model", "dataset"]) -> None:
    """Make a repository on the Hub, unless it is there.

    Args:
        private: only for those that may see it; else as its owner has it set.

    Raises:
        ConfigError: it is to be private, is there, and is public.
    """
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ConfigError(PUBLIC.format(repo_id))


def _files_there(api: "HfApi", repo_id: str, revision: str | None) -> "dict[str, RepoFile] | None":
    """The files of a repository by name; None if there is none that may be seen."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        tree = list(api.list_repo_tree(repo_id, revision=revision))
    except RepositoryNotFoundError:
        return None
    except (RevisionNotFoundError, EntryNotFoundError):  # nothing was ever committed
        return {}
    return {file.path: file for file in tree if isinstance(file, RepoFile)}


def _differing(contents: Mapping[str, bytes], there: "Mapping[str, RepoFile]") -> list[str]:
    """Files to write, then files to delete."""
    written = [file for file, content in contents.items() if file not in there or not _same(content, there[file])]
    return written + [file for file in CHECKPOINT_FILES if file in there and file not in contents]


def _same(content: bytes, there: "RepoFile") -> bool:
    from huggingface_hub.utils.sha import git_hash

    if there.lfs is not None:
        return there.lfs.sha256 == sha256(content).hexdigest()
    return there.blob_id == git_hash(content)


def _commit(
    api: "HfApi", repo_id: str, contents: Mapping[str, bytes], there: "Mapping[str, RepoFile]", revision: str | None
) -> Any:
    """Make the repository hold these files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return api.create_commit(
        repo_id,
        [
            CommitOperationAdd(file, contents[file]) if file in contents else CommitOperationDelete(file)
            for file in dict.fromkeys([*contents, *_differing(contents, there)])
        ],
        commit_message="Upload an icrl-agents checkpoint",
        revision=revision,
    )
