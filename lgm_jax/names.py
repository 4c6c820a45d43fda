"""Names of classes and files: as plain text, and compared.

A name may be any bytes: no valid Unicode, with line breaks, or with the same letters in another
encoding (macOS and Linux differ in `é`).
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

# Joiners of scripts and emoji: invisible, but they change the look of their neighbours.
_JOINERS = "\u200c\u200d"


def plain(name: object) -> str:
    """Returns a name as one line of valid text in NFC; readable text stays unchanged.

    Control characters, line breaks and bytes that are no UTF-8 become escapes, odd spaces ordinary
    ones; invisible characters and spaces at either end are dropped.
    """
    text = str(name)
    if text.isascii() and text.isprintable() and text == text.strip() and text:
        return text
    # Bytes that Python could not decode in the machine's locale may be UTF-8.
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    shown = "".join(map(_show, unicodedata.normalize("NFC", text))).strip()
    return shown.strip(_JOINERS) or "_"


def join(items: Sequence[str]) -> str:
    """Lists items as in a sentence."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def match(
    names: Sequence[str], known: Sequence[str], *more: Callable[[str], str]
) -> dict[str, str]:
    """Matches names with others: equal ones, then by looks, then without case and `_`.

    Args:
        more: Further ways to write a name, which are compared last.

    Returns:
        The other name of each name that matches exactly one. No two are the same.
    """
    matches: dict[str, str] = {}
    ways: list[Callable[[str], str]] = [str, looks, folded, *more]
    for write in ways:
        ours, theirs = _by_key(names, write), _by_key(known, write)
        taken = set(matches.values())
        for key, name in ours.items():
            other = theirs.get(key)
            if not (name is None or other is None or name in matches or other in taken):
                matches[name] = other
    return matches


def looks(name: str) -> str:
    """Returns a key that is equal for names that look the same."""
    return " ".join(re.sub(f"[{_JOINERS}]", "", plain(name)).split())


def folded(name: str) -> str:
    """Returns a key that is equal for names that differ in case, spaces, `_` and `-` at most."""
    return re.sub(r"[\s_-]+", " ", looks(name).casefold()).strip()


def _by_key(names: Sequence[str], write: Callable[[str], str]) -> Mapping[str, str | None]:
    """Returns names by their keys, or `None` where several have the same key."""
    by_key: dict[str, str | None] = {}
    for name in dict.fromkeys(names):
        key = write(name)
        by_key[key] = None if key in by_key else name
    return by_key


def _show(character: str) -> str:
    category = unicodedata.category(character)
    code = ord(character)
    if category == "Zs":
        return " "
    if category == "Cf":
        # Flags are made of tags.
        return character if character in _JOINERS or 0xE0020 <= code <= 0xE007F else ""
    if 0xDC80 <= code <= 0xDCFF:
        # A surrogate that stands for a byte.
        return f"\\x{code - 0xDC00:02x}"
    if category in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character
