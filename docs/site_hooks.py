"""Hooks of mkdocs: a page for every numbered example, and links to files of the repository that lead there."""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the examples into the navigation."""
    pages = [f"examples/{path.stem}.md" for path in EXAMPLES]
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Examples" in entry:
            entry["Examples"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make a page of every example: its docstring as text, then the whole file."""
    for path in EXAMPLES:
        source = path.read_text(encoding="utf-8")
        summary, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
        text = f"# {path.stem}\n\n**{summary}**\n\n{rest}\n\n    python examples/{path.name} --help\n\n"
        page = f"{text}```python\n{source}```\n"
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """On the site, a link to an example's file leads to its page."""
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)
