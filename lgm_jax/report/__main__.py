"""`python -m lgm_jax.report`: writes the page of a run anew, or sets several side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from lgm_jax import terminal
from lgm_jax.errors import UserError
from lgm_jax.report.compare import write_comparison
from lgm_jax.report.page import write_page
from lgm_jax.report.view import read_run

USAGE = """\
usage: python -m lgm_jax.report RUN [--beside=RUN ...]
       python -m lgm_jax.report RUN RUN ... --out=compare.html

With one run folder: writes its report.html anew, from the folder alone. With several: writes a
page with the images of the same classes side by side, accuracies across models and losses.

  RUN             a folder that launch.py wrote
  --beside=RUN    for one run: show the images of another run of the same classes too, where a
                  class is enlarged; may be given several times
  --out=FILE      for several: the page to write, an .html file outside of run folders
  --help          this text

exit codes: 0 done; 2 bad input (one line that starts with "error:")
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(arguments: Sequence[str]) -> int:
    """Writes a page; bad input ends in one line and exit code 2."""
    if any(argument in ("--help", "-h") for argument in arguments):
        print(USAGE, end="")
        return 0
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--beside", action="append", default=[])
    parser.add_argument("--out")
    try:
        given = parser.parse_intermixed_args(list(arguments))
        if not given.runs:
            raise UserError("no run: name a run folder, for example runs/quickstart; see --help")
        if len(given.runs) == 1 and given.out is None:
            others = [read_run(folder) for folder in given.beside]
            print(write_page(read_run(given.runs[0]), others))
            return 0
        if given.beside:
            raise UserError("--beside is for the page of one run; for several, leave it out")
        if len(given.runs) == 1:
            raise UserError("--out is for several runs; the page of one is its report.html")
        if given.out is None:
            raise UserError("several runs need a page to write: add --out=compare.html")
        print(write_comparison([read_run(folder) for folder in given.runs], given.out))
    except UserError as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write the page: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
