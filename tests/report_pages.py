"""Writing and reading the pages of runs."""

import html
import re
from html.parser import HTMLParser

from lgm_jax.report import __main__ as command


class Tags(HTMLParser):
    """Start tags of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


def write(*arguments):
    """Runs `python -m lgm_jax.report` in this process; gives its exit code."""
    return command.main(list(map(str, arguments)))


def read_commands(text):
    """Commands and code of a page, by what they are."""
    found = re.findall(
        r'<pre tabindex="0" aria-label="([^"]+)"><code>(.*?)</code>', text, re.DOTALL
    )
    return {what: html.unescape(re.sub(r"<[^>]+>", "", inside)) for what, inside in found}


def refuse(capsys, *arguments):
    """Must end with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert write(*arguments) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    return captured.err
