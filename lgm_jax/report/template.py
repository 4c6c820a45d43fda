"""Fill the templates of this package: pages in HTML, cards in Markdown.

Jinja2 is imported only when something is written. In HTML it escapes whatever comes from data; in
Markdown the filters `markdown` and `code` do.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from lgm_jax import names

if TYPE_CHECKING:
    import markupsafe


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fills a template of `report/templates`."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lgm_jax.report"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "unbroken": _unbroken,
        "percent": percent,
        "thousands": "{:,}".format,
        "listed": names.join,
        "markdown": _markdown,
        "code": _code,
    }
    text = {
        name: markupsafe.Markup((_folder() / "templates" / f"page.{name}").read_text())
        for name in ("css", "js")
    }
    return environment.get_template(template).render(**text, **context)


def look() -> str:
    """Returns a hash that changes when the page would look different for the same run."""
    files = sorted([*_folder().glob("*.py"), *(_folder() / "templates").iterdir()])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def percent(value: float) -> str:
    """Writes an accuracy in percent with one decimal."""
    return f"{value:.1f}"


def _folder() -> epath.Path:
    return epath.Path(__file__).parent


def _unbroken(command: str) -> markupsafe.Markup:
    """Wraps the words of a command, which a browser would break after hyphens, so within a flag."""
    import markupsafe

    word = markupsafe.Markup("<span>{}</span>")
    return markupsafe.Markup("").join(
        word.format(part) if part.strip() else part for part in re.split(r"(\s+)", command)
    )


def _markdown(text: str) -> str:
    """Escapes text from data as one line of Markdown, for tables too."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def _code(value: Any) -> str:
    """Writes a block of JSON, in a fence that is longer than any within."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    fence = "`" * max([2, *map(len, re.findall("`+", text))]) + "`"
    return f"{fence}json\n{text}\n{fence}"
