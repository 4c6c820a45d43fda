"""MkDocs hook: fills the page of config keys from the code."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

# The program `mkdocs`, unlike `python -m mkdocs`, does not look in the current folder.
sys.path.insert(0, str(Path(__file__).parents[1]))
common = importlib.import_module("configs.common")

_MARK = "<!-- keys -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns a page's text, with a table for each section of keys in place of the mark."""
    return markdown.replace(_MARK, key_tables()) if _MARK in markdown else markdown


def key_tables() -> str:
    """Returns Markdown: a heading and a table for each section, and first the keys of none."""
    keys = sorted(common.KEYS, key=lambda name: "." in name)
    lines = []
    for section, names in itertools.groupby(keys, lambda name: name.rpartition(".")[0]):
        lines += [
            "",
            f"## {section or 'The run'}",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for name in names:
            key = common.KEYS[name]
            default = "unset" if isinstance(key.default, type) else repr(key.default)
            meaning = key.help.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{name}` | `{default}` | {meaning} |")
    return "\n".join(lines)
