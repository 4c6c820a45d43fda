"""Fill the templates of this package: pages in HTML, cards in Markdown.

Jinja2 is imported only when something is written. In HTML it escapes whatever comes from data; in
Markdown the filters `markdown` and `code` do.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from lgm_jax import __version__, names
from lgm_jax.report.vocabulary import COLOURS, INK, LINE, PAPER, SERIES, SOFT

if TYPE_CHECKING:
    import jinja2
    import markupsafe


_FOLDER = epath.Path(__file__).parent


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fills a template of `report/templates`."""
    import markupsafe

    def read(name: str) -> str:
        return (_FOLDER / "templates" / name).read_text()

    text = {
        "colours": _colours(),
        "css": read("map.css") + read("page.css"),
        # The parts share one function.
        "js": read("page.js") + read("map.js"),
    }
    safe = {name: markupsafe.Markup(part) for name, part in text.items()}
    return _environment().get_template(template).render(**safe, **context)


@functools.cache
def _environment() -> jinja2.Environment:
    """Returns what loads templates, and compiles each once in a process."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lgm_jax.report"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "unbroken": _unbroken,
        "wrapped": _wrapped,
        "filename": lambda name: re.sub(r"\W+", "_", name).strip("_").lower(),
        "percent": "{:.1f}".format,
        "thousands": "{:,}".format,
        "listed": names.join,
        "markdown": _markdown,
        "code": _code,
    }
    environment.globals |= {
        "version": __version__,
        # Figures that are saved are on white.
        "palette": {method: pair[0] for method, pair in COLOURS.items()},
        "series": [pair[0] for pair in SERIES],
    }
    return environment


def _colours() -> str:
    """Returns the style sheet that defines the colours of rows, curves, paper and ink."""
    pairs = {**COLOURS, "paper": PAPER, "ink": INK, "soft": SOFT, "line": LINE}
    pairs |= {f"s{number}": pair for number, pair in enumerate(SERIES)}
    light, dark = (
        " ".join(f"--{name}: {pair[i]};" for name, pair in pairs.items()) for i in (0, 1)
    )
    dots = "\n".join(f".{method} {{ --row: var(--{method}); }}" for method in COLOURS)
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{dots}\n"
    )


def look() -> str:
    """Returns a hash that changes when the page would look different for the same run."""
    files = sorted([*_FOLDER.glob("*.py"), *(_FOLDER / "templates").iterdir()])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _unbroken(command: str) -> markupsafe.Markup:
    """Wraps the words of a command, which a browser would break after hyphens, so within a flag."""
    import markupsafe

    word = markupsafe.Markup("<span>{}</span>")
    return markupsafe.Markup("").join(
        word.format(part) if part.strip() else part for part in re.split(r"(\s+)", command)
    )


def _wrapped(name: str) -> markupsafe.Markup:
    """Lets a browser break a name after underscores, and nowhere within a word."""
    import markupsafe

    return markupsafe.escape(name).replace("_", markupsafe.Markup("_<wbr>"))


def _markdown(text: str) -> str:
    """Escapes text from data as one line of Markdown, for tables too."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def _code(value: Any) -> str:
    """Writes a block of JSON, in a fence that is longer than any within."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    fence = "`" * max([2, *map(len, re.findall("`+", text))]) + "`"
    return f"{fence}json\n{text}\n{fence}"
