"""`python -m lgm_jax --config=RECIPE --workdir=FOLDER`: run `launch.py` from any folder."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(__file__).parent / "recipes"
    # Before a folder `configs` in the current one.
    sys.path.insert(0, str(folder.joinpath("launch.py").resolve().parent))
    runpy.run_path(str(folder / "launch.py"), run_name="__main__")
