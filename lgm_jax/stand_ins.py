"""What lies in the place of a file whose content is elsewhere, told by how it begins."""

from __future__ import annotations

# So many bytes are enough.
HEAD = 256

# How it begins, in lower case and behind a byte order mark or spaces; what it is; what to do.
_STAND_INS = (
    (b"version https://git-lfs", "it is a git-lfs pointer: run git lfs pull"),
    (b"/annex/objects/", "it is a git-annex pointer: run git annex get"),
    (b"<!doctype html", "it is a web page, not the file: download it again"),
    (b"<html", "it is a web page, not the file: download it again"),
    (b"<?xml", "it is XML, perhaps a server's answer, not the file: download it again"),
    (b'{"error"', "it is a server's error, not the file: download it again"),
)


def explain(start: bytes) -> str | None:
    """What a file is that begins so, and what to do; `None` where it may be what it should.

    Args:
        start: A file's first `HEAD` bytes, or all.
    """
    beginning = start[:HEAD].lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if not beginning:
        return "it is empty"
    return next((what for mark, what in _STAND_INS if beginning.startswith(mark)), None)
