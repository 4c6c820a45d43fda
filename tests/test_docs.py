"""What the documentation shows."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tools import write_results

DOCS = Path(__file__).parents[1] / "docs"
SHORT = {"COPIES, STEPS = 3, 120": "COPIES, STEPS = 1, 4"}


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    matplotlib.use("Agg")
    cells = json.loads((DOCS / "ablations.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for long, short in SHORT.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    names: dict = {}
    exec(code, names)
    sets = [*names["sets"].values(), *names["rivals"].values(), names["own"]]
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
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_results_become_pages(tmp_path, capsys):
    workdir, out = tmp_path / "table1", tmp_path / "docs"
    workdir.mkdir()
    assert write_results.main([str(workdir)], out) == 2
    assert "no finished experiment" in capsys.readouterr().err
    (workdir / "table.md").write_text("# Table 1: images\n\nA note.\n\n## digits\n\n| a |\n")
    Image.new("RGB", (3600, 900)).save(workdir / "figure.png")
    assert write_results.main([str(workdir)], out) == 0
    with Image.open(out / "table1.webp") as image:
        assert image.size == (1800, 450)
    assert (out / "table1.md").read_text() == (
        "# Table 1: images\n\nA note.\n\n![Table 1: images](table1.webp)\n\n## digits\n\n| a |\n"
    )
    Image.new("RGB", (30, 90)).save(workdir / "images.png")
    assert write_results.main([str(workdir)], out) == 0
    assert "table1_images.webp)" in (out / "table1.md").read_text().partition("## Images")[2]
    assert (out / "table1_images.webp").exists()


def test_every_page_of_results_is_told_of():
    told = (DOCS / "results.md").read_text()
    pages = {f"results/{path.name}" for path in (DOCS / "results").glob("*.md")}
    assert pages == set(re.findall(r"\((results/\w+\.md)\)", told))
    shown = (DOCS.parent / "mkdocs.yml").read_text()
    assert pages == set(re.findall(r": (results/\w+\.md)", shown))
