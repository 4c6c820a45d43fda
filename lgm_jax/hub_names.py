"""Parse names of repositories on the Hugging Face hub, as copied from pages and code."""

from __future__ import annotations

import re
import urllib.parse
from typing import NamedTuple

_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# The prefixes of timm and OpenCLIP, and of file systems.
_PREFIX = re.compile(r"(?:hf[-_]hub:|hf://)(?P<id>[^@]+?)/?(?:@(?P<revision>.+))?")
_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[^/?#]+/[^/?#]+)"
    r"(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/?#]+))?(?:[/?#].*)?",
    re.IGNORECASE,
)

# Parts of the hub without models.
_OTHERS = ("datasets/", "spaces/", "docs/", "papers/", "blog/", "collections/")


class HubName(NamedTuple):
    """A repository `owner/name`, and the branch, tag or commit that its name has, if any."""

    repo: str
    revision: str | None


def parse(name: str) -> HubName | None:
    """Parses `owner/name`, `hf-hub:owner/name`, or the address of a page.

    Returns `None` for anything else, such as the address of a data set. A file at the end of an
    address is left out, and so is the revision `main`.
    """
    if _ID.fullmatch(name) and not re.match(r"(?:www\.)?(?:huggingface|hf)\.co/", name):
        return HubName(name, None)
    match = _PREFIX.fullmatch(name) or _PAGE.fullmatch(name)
    if match is None or not _ID.fullmatch(match["id"]) or match["id"].startswith(_OTHERS):
        return None
    revision = urllib.parse.unquote(match["revision"] or "main")
    return HubName(match["id"], None if revision == "main" else revision)
