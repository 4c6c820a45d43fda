"""Names of repositories on the Hugging Face hub, as people copy them from pages and from code."""

from __future__ import annotations

import re
import urllib.parse
from typing import NamedTuple

_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# The prefix that timm and OpenCLIP have, and that of file systems.
_PREFIX = re.compile(r"(?:hf[-_]hub:|hf://)(?P<id>[^@]+?)/?(?:@(?P<revision>.+))?")
_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[^/?#]+/[^/?#]+)"
    r"(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/?#]+))?(?:[/?#].*)?",
    re.IGNORECASE,
)

# What the hub has beside models.
_OTHERS = ("datasets/", "spaces/", "docs/", "papers/", "blog/", "collections/")


class HubName(NamedTuple):
    """A repository `owner/name`, and the branch, tag or commit that its name has, if any."""

    repo: str
    revision: str | None


def parse(name: str) -> HubName | None:
    """The repository that a name means: `owner/name`, `hf-hub:owner/name`, or a page's address.

    `None` for anything else, as the address of a data set. What follows the revision in an address,
    a file, is left out. Of `main`, which every repository has, nothing is said.
    """
    if _ID.fullmatch(name) and not re.match(r"(?:www\.)?(?:huggingface|hf)\.co/", name):
        return HubName(name, None)
    found = _PREFIX.fullmatch(name) or _PAGE.fullmatch(name)
    if found is None or not _ID.fullmatch(found["id"]) or found["id"].startswith(_OTHERS):
        return None
    revision = urllib.parse.unquote(found["revision"] or "main")
    return HubName(found["id"], None if revision == "main" else revision)
