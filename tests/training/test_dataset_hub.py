"""Datasets on the Hub, by its real client against a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from icrl_agents.errors import DatasetError
from icrl_agents.training import dataset_hub
from icrl_agents.training.histories import HistoryDataset, HistoryWriter


class DatasetServer(BaseHTTPRequestHandler):
    """As much of the Hub as the one dataset repository ``org/data`` needs."""

    server: Any

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.log.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.repo = self.server.repo or json.loads(body)  # what is there stays as it is
            self._json({"url": f"{self.server.url}/datasets/org/data"})
        elif path == "/api/datasets/org/data/preupload/main":
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif path == "/api/datasets/org/data/commit/main":
            for line in body.decode().splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    self.server.files[value["path"]] = b64decode(value["content"])
                elif operation["key"] == "deletedFile":
                    del self.server.files[value["path"]]
            oid = sha256(repr(self.server.files).encode()).hexdigest()[:40]
            self.server.commits.append(oid)
            self._json({"commitUrl": f"{self.server.url}/datasets/org/data/commit/{oid}", "commitOid": oid})
        else:
            self._json({})

    def _answer(self, head: bool) -> None:
        self.server.log.append(self.path)
        path, files = self.path.partition("?")[0], self.server.files
        resolved = path.partition("/resolve/")[2].partition("/")[2]
        if "/org/data" not in path or (not self.server.repo and not self.server.commits):
            self._error("RepoNotFound")
        elif path.startswith("/api/datasets/org/data/tree/"):
            self._json([{"type": "file", "path": n, "size": len(c), "oid": blob_id(c)} for n, c in files.items()])
        elif path.startswith("/api/datasets/org/data"):
            commit = self.server.commits[-1] if self.server.commits else "0" * 40
            if path.partition("/revision/")[2] in ("", "main", commit):
                private = bool(self.server.repo) and self.server.repo.get("visibility") == "private"
                siblings = [{"rfilename": name} for name in files]
                self._json({"id": "org/data", "sha": commit, "private": private, "siblings": siblings})
            else:
                self._error("RevisionNotFound")
        elif resolved in files:
            content = files[resolved]
            self._send(200, b"" if head else content, {"ETag": f'"{blob_id(content)}"'}, length=len(content))
        else:
            self._error("EntryNotFound")

    def _error(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code})

    def _json(self, data: Any) -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        commit = self.server.commits[-1] if self.server.commits else "0" * 40
        whole = {"X-Repo-Commit": commit, "Content-Length": str(len(body) if length is None else length)}
        for key, value in {**whole, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def blob_id(content: bytes) -> str:
    return sha256(content).hexdigest()[:40]


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), DatasetServer)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.files, server.commits, server.log, server.repo = {}, [], [], None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(server: Any, home: Path, code: str, **environment: str) -> str:
    """Run code in a process whose Hub is the server; the client reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    header = """
from icrl_agents.errors import DatasetError
from icrl_agents.training.dataset_hub import pull_dataset, push_dataset
def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except DatasetError as error:
        return str(error).splitlines()[0]
"""
    done = subprocess.run(
        [sys.executable, "-c", header + code],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def names(directory: Path) -> list[str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in files if path.name != ".lock")


@pytest.fixture
def mine(tmp_path: Path, make_manifest, make_regular) -> Path:
    with HistoryWriter.create_or_resume(tmp_path / "mine", make_manifest()) as writer:
        for step in (10, 20):
            writer.save_snapshot(step, {"weight": [[1.0 * step, 2.0], [3.0, 4.0]]})
            writer.append(make_regular(make_manifest(), 2, seed=step), {})
        writer.finish([-3.0, -4.0])
    return tmp_path / "mine"


def test_push_then_pull(server: Any, mine: Path, tmp_path: Path, make_dataset) -> None:
    (mine / "secret.txt").write_text("no part of a dataset")
    server.files["shards/00007.safetensors"] = b"of what was there before"
    server.files["huge.bin"] = b"somebody else's"
    home, there = tmp_path / "home", tmp_path / "there"
    own = there / ".cache/huggingface/hub/models--mine"  # as in a home directory
    own.mkdir(parents=True)
    (own / "weights.bin").write_bytes(b"mine")
    address = client(server, home, f"print(push_dataset({str(mine)!r}, 'org/data', private=True))")
    assert address.endswith(f"/commit/{server.commits[-1]}")
    assert (server.repo["type"], server.repo["visibility"]) == ("dataset", "private")
    of_it = sorted([*HistoryDataset(mine).manifest.progress.files], key=lambda entry: entry.file)
    expected = sorted(["README.md", "manifest.json", *(entry.file for entry in of_it)])
    assert sorted(server.files) == sorted([*expected, "huge.bin"])

    pull = f"print(len(attempt(pull_dataset, 'org/data', {str(there)!r})))"
    assert client(server, home, pull) == "4"
    assert (own / "weights.bin").is_file()
    assert sorted(path.name for path in own.parents[1].iterdir()) == [".gitignore", "CACHEDIR.TAG", "hub"]
    shutil.rmtree(there / ".cache")
    assert names(there) == expected
    assert HistoryDataset(there).manifest == HistoryDataset(mine).manifest
    HistoryDataset(there).verify()
    assert not any("huge.bin" in path for path in server.log)
    assert client(server, home, pull) == "4"  # it is there already

    make_dataset(tmp_path / "another")
    into = f"print(attempt(pull_dataset, 'org/data', {str(tmp_path / 'another')!r}))"
    assert client(server, home, into).endswith("holds another dataset; choose another directory")


def test_what_is_to_be_private_never_goes_to_a_public_repository(server: Any, mine: Path, tmp_path: Path) -> None:
    client(server, tmp_path / "home", f"push_dataset({str(mine)!r}, 'org/data')")
    assert "visibility" not in server.repo  # as the owner has it
    commits = list(server.commits)
    code = f"""
from icrl_agents.errors import ConfigError
try:
    push_dataset({str(mine)!r}, 'org/data', private=True)
except ConfigError as error:
    print(error)
"""
    assert "for everybody to see" in client(server, tmp_path / "home", code)
    assert server.commits == commits


def test_what_does_not_arrive_whole_is_no_dataset_and_is_fetched_again(server: Any, mine: Path, tmp_path: Path) -> None:
    home, there = tmp_path / "home", tmp_path / "there"
    client(server, home, f"push_dataset({str(mine)!r}, 'org/data')")
    whole = server.files["shards/00001.safetensors"]
    server.files["shards/00001.safetensors"] = whole[:-1] + bytes([whole[-1] ^ 1])
    pull = f"print(attempt(pull_dataset, 'org/data', {str(there)!r}))"
    told = client(server, home, pull)
    assert "shards/00001.safetensors did not arrive whole; the same command fetches again" in told
    with pytest.raises(DatasetError, match=r"no manifest\.json"):
        HistoryDataset(there)
    server.files["shards/00001.safetensors"] = whole
    client(server, home, pull)
    HistoryDataset(there).verify()
    manifest = json.loads(server.files["manifest.json"])
    manifest["progress"]["complete"] = False
    del manifest["checksum"]
    server.files["manifest.json"] = json.dumps(manifest).encode()
    server.commits.append("f" * 40)
    assert "was not complete when it was uploaded" in client(server, home, pull)


def test_what_the_hub_does_not_have(server: Any, mine: Path, tmp_path: Path) -> None:
    there = str(tmp_path / "there")
    code = f"""
print(attempt(pull_dataset, "org/nothing", {there!r}))
print(attempt(pull_dataset, "not an id", {there!r}))
print(attempt(push_dataset, {str(mine)!r}, "no/such/name"))
"""
    lines = client(server, tmp_path / "home", code).splitlines()
    assert len(lines) == 3
    assert all("that can be fetched from the Hub: " in line for line in lines[:2])
    assert "the dataset 'no/such/name' could not be made or found on the Hub" in lines[2]
    nobody = client(server, tmp_path / "home", code, HF_ENDPOINT="http://127.0.0.1:1").splitlines()
    assert len(nobody) == 3
    assert not (tmp_path / "there").exists()


def test_nothing_broken_is_pushed(mine: Path, make_manifest) -> None:
    shard = mine / "shards/00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DatasetError, match="its sha256 is not the manifest's"):
        dataset_hub.push_dataset(mine, "org/data")


@pytest.mark.usefixtures("server")
def test_nobodys_own_files_are_replaced(server, mine: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (mine / "README.md").write_text("A card of my own.\n")
    client(server, home, f"push_dataset({str(mine)!r}, 'org/data')")
    assert (mine / "README.md").read_text() == "A card of my own.\n"
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("Of my project.\n")
    said = client(server, home, f"print(attempt(pull_dataset, 'org/data', {str(project)!r}))")
    assert "holds README.md and is no dataset" in said
    assert (project / "README.md").read_text() == "Of my project.\n"


def test_the_card_says_what_the_manifest_says(mine: Path) -> None:
    card = DatasetCard(dataset_hub.dataset_card(HistoryDataset(mine).manifest, "org/mine"))
    assert "icrl-agents" in card.data.tags
    assert "4 of 20 steps, 2 a task" in card.text
    assert 'pull_dataset("org/mine", ' in card.text
    assert "| final return of the source, mean over tasks | -3.50 |" in card.text
