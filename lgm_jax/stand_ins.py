"""Recognise stand-ins for a file by their first bytes, such as pointers and error pages."""

from __future__ import annotations

# The first bytes that `explain` reads.
HEAD = 256

# First bytes, in lower case and after a byte order mark or spaces; and the explanation.
_STAND_INS = (
    (b"version https://git-lfs", "it is a git-lfs pointer: run git lfs pull"),
    (b"/annex/objects/", "it is a git-annex pointer: run git annex get"),
    (b"<!doctype html", "it is a web page, not the file: download it again"),
    (b"<html", "it is a web page, not the file: download it again"),
    (b"<?xml", "it is XML, perhaps a server's answer, not the file: download it again"),
    (b'{"error"', "it is a server's error, not the file: download it again"),
)


def explain(start: bytes) -> str | None:
    """Says what a stand-in with these first bytes is, and what to do; `None` for other files."""
    beginning = start[:HEAD].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not beginning:
        return "it is empty"
    return next((what for mark, what in _STAND_INS if beginning.startswith(mark)), None)
