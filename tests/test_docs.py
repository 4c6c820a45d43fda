"""What the documentation shows."""

import json
from pathlib import Path

import matplotlib
import numpy as np

DOCS = Path(__file__).parents[1] / "docs"
SHORT = {"COPIES, STEPS = 3, 120": "COPIES, STEPS = 1, 4"}


def test_the_notebook_runs(monkeypatch):
    matplotlib.use("Agg")
    cells = json.loads((DOCS / "ablations.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in SHORT.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    names: dict = {}
    exec(code, names)
    sets = [*names["sets"].values(), *names["rivals"].values()]
    for i, pixels in enumerate(sets):
        assert pixels.shape == (10, 32, 32, 3)
        assert 0 <= pixels.min() < pixels.max() <= 1
        # "plain" is in both.
        assert i == 3 or not any(np.array_equal(pixels, other) for other in sets[:i])
    # Four steps do not reach what the cells show, but the finest level is not there yet either.
    assert names["losses"].shape == (4,)


def test_the_notebook_has_its_outputs():
    cells = json.loads((DOCS / "ablations.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
