"""`python -m lgm_jax.report`: rewrite the page of a run, or compare several runs on one page."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lgm_jax import terminal
from lgm_jax.errors import UserError
from lgm_jax.report.compare import write_comparison
from lgm_jax.report.page import write_page
from lgm_jax.report.view import read_run

USAGE = """\
usage: python -m lgm_jax.report RUN [--beside=RUN ...]
       python -m lgm_jax.report RUN RUN ... --out=compare.html

With one run folder: rewrites its report.html, from the folder alone. With several: writes a
page with the images of the same classes side by side, accuracies across models and losses.

  RUN             a folder that launch.py wrote
  --beside=RUN    for one run: show the images of another run of the same classes too, where a
                  class is enlarged; may be given several times
  --out=FILE      for several: the page to write, an .html file outside of run folders
  --help          this text

exit codes: 0 done; 2 bad input (one line that starts with "error:")
"""


@terminal.one_line_errors
def main(arguments: Sequence[str]) -> int:
    """Writes the page that the command line names; returns the exit code."""
    if any(argument in ("--help", "-h") for argument in arguments):
        print(USAGE, end="")
        return 0
    parser = terminal.Parser(prog="python -m lgm_jax.report", add_help=False, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--beside", action="append", default=[])
    parser.add_argument("--out")
    options = parser.parse_intermixed_args(list(arguments))
    if not options.runs:
        raise UserError("no run: name a run folder, for example runs/quickstart; see --help")
    one = len(options.runs) == 1
    if options.beside and not one:
        raise UserError("--beside is for the page of one run; for several, leave it out")
    if options.out is not None and one:
        raise UserError("--out is for several runs; the page of one is its report.html")
    if options.out is None and not one:
        raise UserError("several runs need a page to write: add --out=compare.html")
    runs, others = (
        [read_run(folder) for folder in folders] for folders in (options.runs, options.beside)
    )
    try:
        print(write_page(runs[0], others) if one else write_comparison(runs, options.out))
    except OSError as error:
        raise UserError(f"cannot write the page: {error}") from error
    return 0


if __name__ == "__main__":
    terminal.prepare()
    sys.exit(terminal.run(main, sys.argv[1:]))
