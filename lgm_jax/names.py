"""Names of classes and files, which may be anything: as text that every writer takes, and compared.

Folders are named by bytes, and other programs' files by whatever they wrote: a name may be no valid
Unicode, hold line breaks, or be the same letters encoded otherwise (macOS and Linux differ in `é`).
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

# Joiners of scripts and emoji: invisible, but what they join looks otherwise without them.
_JOINERS = "\u200c\u200d"


def plain(name: object) -> str:
    """A name as one line of valid text, in NFC; what can be read already stays as it is.

    Control characters, line breaks and bytes that are no UTF-8 become escapes, odd spaces ordinary
    ones; invisible characters and spaces at either end are dropped.
    """
    text = str(name)
    if text.isascii() and text.isprintable() and text == text.strip() and text:
        return text
    # What Python could not decode in the machine's locale may be UTF-8 all the same.
    with contextlib.suppress(UnicodeEncodeError):
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    shown = "".join(map(_show, unicodedata.normalize("NFC", text))).strip()
    return shown.strip(_JOINERS) or "_"


def match(
    names: Sequence[str], known: Sequence[str], *more: Callable[[str], str]
) -> dict[str, str]:
    """Which of other names each name is: equal, else looking the same, else but for case and `_`.

    Args:
        names: The names to find.
        known: The names to find them among.
        more: Further ways to write a name, by which it is looked for at last.

    Returns:
        From each name that is exactly one of the others to that one. No two are the same.
    """
    found: dict[str, str] = {}
    ways: list[Callable[[str], str]] = [str, looks, folded, *more]
    for write in ways:
        ours, theirs = _by_key(names, write), _by_key(known, write)
        taken = set(found.values())
        for key, name in ours.items():
            other = theirs.get(key)
            if name is not None and other is not None and name not in found and other not in taken:
                found[name] = other
    return found


def looks(name: str) -> str:
    """Equal for names that look the same."""
    return " ".join(re.sub(f"[{_JOINERS}]", "", plain(name)).split())


def folded(name: str) -> str:
    """Equal for names that differ in case, or in spaces, `_` and `-`, or that look the same."""
    return re.sub(r"[\s_-]+", " ", looks(name).casefold()).strip()


def _by_key(names: Sequence[str], write: Callable[[str], str]) -> Mapping[str, str | None]:
    """From what is written to the name, or to `None` where several are written so."""
    keys = [write(name) for name in dict.fromkeys(names)]
    counts = Counter(keys)
    pairs = zip(keys, dict.fromkeys(names), strict=True)
    return {key: name if counts[key] == 1 else None for key, name in pairs}


def _show(character: str) -> str:
    category = unicodedata.category(character)
    code = ord(character)
    if category == "Zs":
        return " "
    if category == "Cf":
        # Of tags, flags are made.
        return character if character in _JOINERS or 0xE0020 <= code <= 0xE007F else ""
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that Python keeps so.
        return f"\\x{code - 0xDC00:02x}"
    if category in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character
