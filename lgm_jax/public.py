"""What others may see of a run's settings: folders of this machine by their name alone.

A run folder records settings and command as they were typed, so that they make the same run again.
Pages, cards and services show them without the way to a folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from lgm_jax import hub_names

# Keys and flags whose value is one file or folder, whatever characters it has. Others may be lists.
_PATHS = ("config", "workdir", "data.folder", "images.source", "real.cache", "experiment.share")


def value(key: str, text: Any) -> Any:
    """A value as others may see it.

    Args:
        key: The config key or flag.
        text: Its value. Of a string, each item that is a path from the root or the home folder, up
            through `..`, or to a bucket, becomes its last part; names such as `owner/name` and
            folders below the current one stay as they are.
    """
    if not isinstance(text, str):
        return text
    if key in _PATHS:
        return _shorten(text)
    return ",".join(map(_shorten, text.split(",")))


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's settings, by config key, as others may see them."""
    return {key: value(key, text) for key, text in values.items()}


def command(typed: str) -> str:
    """A command line as others may see it."""
    words = []
    flag = ""
    for word in shlex.split(typed):
        name, equals, text = word.partition("=")
        if word[:1] == "-":
            flag = name.lstrip("-").removeprefix("config.")
        else:
            # The value of the flag before it.
            name, equals, text = "", "", word
        words.append(name + equals + value(flag, text))
    return shlex.join(words)


def _shorten(item: str) -> str:
    path = item.strip()
    named = hub_names.parse(path)
    if named is not None:
        return item if named.repo == path else named.repo
    elsewhere = path[:1] in ("/", "~") or "://" in path or ".." in PurePath(path).parts
    return PurePath(path).name if elsewhere else item
