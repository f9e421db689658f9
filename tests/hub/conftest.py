"""The Hub, as its real client sees it, on this machine."""

import json
import os
import subprocess
import sys
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub.utils.sha import git_hash

TOKEN = "hf_test"


@dataclass
class Repository:
    """One repository; ``commits`` is empty where it was made and never filled."""

    private: bool = False
    files: dict = field(default_factory=dict)
    commits: list = field(default_factory=list)
    branches: set = field(default_factory=lambda: {"main"})

    @property
    def head(self):
        return self.commits[-1] if self.commits else "0" * 40


class Hub(BaseHTTPRequestHandler):
    """The routes that pushing and loading a checkpoint use; weights are told with a SHA-256, as the Hub's LFS does."""

    def do_GET(self):
        self._answer(head=False)

    def do_HEAD(self):
        self._answer(head=True)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        self.server.log.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"", {})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/branch/" in path:
            self._repository(path).branches.add(path.rpartition("/")[2])
            self._json({})
        elif "/commit/" in path and self.server.refuse in path:
            self._send(503, b"", {})
        elif "/commit/" in path:
            self._commit(path, [json.loads(line) for line in body.decode().splitlines()])
        else:
            self._json({})

    def _create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            self._json({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        self._json({"url": f"{self.server.url}/{name}"})

    def _commit(self, path, operations):
        repository = self._repository(path)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del repository.files[value["path"]]
        oid = sha256(repr((path, len(repository.commits), repository.files)).encode()).hexdigest()[:40]
        repository.commits.append(oid)
        name = "/".join(path.split("/")[3:5])
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def _repository(self, path):
        parts = path.removeprefix("/api/models").split("/")
        return self.server.repositories.get("/".join(parts[1:3]))

    def _answer(self, head):
        path = self.path.partition("?")[0]
        self.server.log.append(f"{self.command} {path}")
        repository = self._repository(path)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._error("RepoNotFound")
        elif "/resolve/" in path:
            self._file(repository, path.rpartition("/")[2], head)
        elif path.startswith("/api/models/"):
            self._about(repository, path)
        else:
            self._error("EntryNotFound")

    def _about(self, repository, path):
        _, _, rest = path.partition("/tree/" if "/tree/" in path else "/revision/")
        if rest not in ("", repository.head, *repository.branches) or ("/tree/" in path and not repository.commits):
            self._error("RevisionNotFound")
        elif "/tree/" in path:
            self._json([entry(name, content) for name, content in repository.files.items()])
        else:
            siblings = [{"rfilename": name} for name in repository.files]
            about = {"id": path.split("/")[3], "sha": repository.head, "private": repository.private}
            self._json({**about, "siblings": siblings})

    def _file(self, repository, name, head):
        if name not in repository.files:
            self._error("EntryNotFound", repository)
            return
        content = self.server.tamper.get(name, repository.files[name])
        headers = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": repository.head}
        self._send(200, b"" if head else content, headers, length=len(content))

    def _error(self, code, repository=None):
        self._send(404, b"", {"X-Error-Code": code})

    def _json(self, data, status=200):
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers, length=None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


def entry(name, content):
    """A file in a listing."""
    about = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    if name.endswith(".safetensors"):
        about |= {
            "oid": "0" * 40,
            "lfs": {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 130},
        }
    return about


@pytest.fixture
def server():
    """``repositories`` by id, the ``log`` of requests, files to ``tamper`` with, a path whose commits to ``refuse``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.log, server.tamper, server.refuse = {}, [], {}, "nothing"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


NURSERY = """
import io, json, os, sys, traceback
import torch
import icrl_agents.agent, icrl_agents.cli, icrl_agents.publishing
assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(wanted["environment"])
        sys.argv[1:] = wanted["arguments"]
        sys.stdout = sys.stderr = io.StringIO()
        status = 0
        try:
            exec(wanted["code"], {"__name__": "__main__"})
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
            status = 1
        print(json.dumps([status, sys.stdout.getvalue()]), file=sys.__stdout__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="session")
def nursery():
    """A process that has imported all but the Hub's client, and has a child for each piece of code it is given."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", NURSERY],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture
def client(server, nursery, tmp_path):
    """Run code in a process whose Hub is the server; the client reads its settings when it is imported."""

    def run(code, *arguments, rc=0, home="home", **environment):
        settings = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        wanted = {"code": code, "arguments": list(arguments), "environment": settings | environment}
        print(json.dumps(wanted), file=nursery.stdin, flush=True)
        status, printed = json.loads(nursery.stdout.readline())
        assert status == rc, printed
        return printed.strip()

    return run
