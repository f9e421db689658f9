"""The documentation: its code runs as it stands, quotes are of the examples named, and the site has no dead link."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from icrl_agents.cli import COMMANDS, _command_name, main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
QUOTING = {"own_env": "04_your_own_meta_env", "how_to_backbone": "09_own_backbone"}
"""Page -> the example that its code is from."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


RUNNING = [page for page in PAGES if blocks(page) and page.stem not in QUOTING]


def test_pages_have_code() -> None:
    assert {"tutorial", "how_to_data", "how_to_sb3"} <= {page.stem for page in RUNNING}


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_code_of_a_page_runs_in_its_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    for number, block in enumerate(code):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", QUOTING)
def test_a_page_quotes_its_example(page: str) -> None:
    source = (ROOT / f"examples/{QUOTING[page]}.py").read_text(encoding="utf-8")
    quoted = blocks(ROOT / f"docs/{page}.md")
    assert quoted
    for block in quoted:
        assert block in source


def commands(page: Path) -> list[list[str]]:
    """What is to be typed: indented, or quoted with its arguments. ``...`` and brackets stand for more."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^    (?:\S+/)?icrl-agents ([a-z].*?)(?: +#.*)?$", text, re.MULTILINE)
    found += re.findall(r"`icrl-agents ([a-z][^` ]* [^`]+)`", text)
    return [shlex.split(command) for command in found if "..." not in command and "[" not in command]


COMMAND_LINES = [(page.name, line) for page in [*PAGES, ROOT / "README.md"] for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES, ids=lambda given: "" if isinstance(given, str) else given[0])
def test_commands_in_the_docs_are_commands(page: str, line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are parsed, not run: no option that is not one, none that is missing."""
    ran: list[str] = []
    for command in COMMANDS:
        monkeypatch.setattr(command, "run", lambda self: ran.append(_command_name(type(self))))
    main(line)
    assert ran == line[:1], (page, line)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "built/icrl_agents"  # as installed: mkdocstrings reads files and knows no package-dir
    sources = {"icrl_agents": package, "envs": package / "envs", "training": package / "training"}
    for source, target in sources.items():
        ignored = shutil.ignore_patterns(
            "__pycache__", "*.safetensors", *(["envs", "training"] if target == package else [])
        )
        shutil.copytree(ROOT / source, target, ignore=ignored)
    monkeypatch.setenv("ICRL_DOCS_PACKAGE", str(tmp_path / "built"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "InContextAgent" in (tmp_path / "site/reference/agent/index.html").read_text(encoding="utf-8")
    pages = {path.parent.name for path in (tmp_path / "site/examples").glob("*/index.html")}
    assert pages == {path.stem for path in (ROOT / "examples").glob("[0-9]*.py")}


def test_no_page_is_unfinished() -> None:
    for page in [*PAGES, ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        assert not re.search("TODO|@@", text), page.name
