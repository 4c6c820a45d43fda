"""What the documentation shows."""

import io
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lgm_jax.distilled import save_distilled
from lgm_jax.experiments import result
from lgm_jax.report.vocabulary import TITLES
from tests.run_folders import write_run
from tools import answer_photos, write_gallery, write_results

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


def test_only_a_finished_experiment_becomes_a_page(tmp_path, capsys):
    assert write_results.main([str(tmp_path)], tmp_path / "docs") == 2
    assert "no finished experiment" in capsys.readouterr().err


def test_a_page_has_the_figure_before_the_tables_and_the_images_at_the_end(tmp_path):
    table = "# Table 1: images\n\nA note.\n\n## digits\n\n| a |\n"
    collected = {"commits": ["0123456789abcdef"], "command": "python launch.py --workdir=a"}
    text = write_results.page("a", table, collected, images=False)
    assert text == (
        "# Table 1: images\n\nA note.\n\n![Table 1: images](a.svg)\n\n## digits\n\n| a |\n\n"
        "## Command\n\nAt commit `0123456789`:\n\n```sh\npython launch.py --workdir=a\n```\n"
    )
    text = write_results.page("a", table, collected, images=True)
    assert "(a_images.webp)" in text.partition("## Images")[2]
    Image.new("RGB", (3600, 900)).save(tmp_path / "images.png")
    with Image.open(io.BytesIO(write_results.shrink(tmp_path / "images.png"))) as image:
        assert image.size == (1800, 450)


RUNS = sorted((DOCS / "results" / "runs").glob("*.json"))


def test_every_page_of_results_has_its_runs():
    pages = {path.stem for path in (DOCS / "results").glob("*.md")}
    assert pages == {path.stem for path in RUNS} | {"photos_answers"}


@pytest.mark.parametrize("path", RUNS, ids=[path.stem for path in RUNS])
def test_every_number_of_an_experiment_is_computed_from_its_runs(path):
    collected, images = json.loads(path.read_text()), path.parents[1] / f"{path.stem}_images.webp"
    table = result.to_markdown(write_results.tabulate(collected))
    page = write_results.page(path.stem, table, collected, images=images.exists())
    assert page == (path.parents[1] / f"{path.stem}.md").read_text()


def test_the_questions_on_photos_are_answered_from_their_runs():
    answers = answer_photos.Answers(answer_photos.read(DOCS / "results" / "runs"))
    assert answer_photos.page(answers) == (DOCS / "results" / answer_photos.PAGE).read_text()


def test_every_picture_of_results_is_on_a_page():
    pages = [path.read_text() for path in [DOCS / "results.md", *(DOCS / "results").glob("*.md")]]
    shown = set(re.findall(r"\((?:results/)?(\w+\.(?:svg|webp))\)", "\n".join(pages)))
    pictures = [path for path in (DOCS / "results").iterdir() if path.suffix in (".svg", ".webp")]
    assert shown == {path.name for path in pictures}


def test_every_page_of_results_is_told_of():
    told = (DOCS / "results.md").read_text()
    pages = {f"results/{path.name}" for path in (DOCS / "results").glob("*.md")}
    assert pages == set(re.findall(r"\((results/\w+\.md)\)", told))
    shown = (DOCS.parent / "mkdocs.yml").read_text()
    assert pages == set(re.findall(r": (results/\w+\.md)", shown))


RECORDS = write_gallery.read_records(DOCS / "gallery")


def test_the_gallery_is_written_from_its_records():
    assert RECORDS
    assert write_gallery.page(RECORDS) == (DOCS / "gallery.md").read_text()
    files = {path.name for path in (DOCS / "gallery").iterdir()}
    assert files == {
        f"{name}{end}"
        for name in RECORDS
        for end in (".json", ".webp", "_shown.webp", "_timelapse.webp")
    }


@pytest.mark.parametrize("name", RECORDS)
def test_a_picture_is_made_again_from_the_images_of_its_run(name):
    def pixels(picture):
        return np.asarray(picture.convert("RGBA"), int)

    folder = DOCS / "gallery"
    with Image.open(folder / f"{name}.webp") as images:
        assert images.size == (RECORDS[name]["side"] * len(RECORDS[name]["classes"]), images.height)
        again = pixels(write_gallery.compose(images))
    with Image.open(folder / f"{name}_shown.webp") as shown:
        apart = np.abs(pixels(shown) - again)[again[..., 3] > 0]
    # Lossy pictures.
    assert apart.mean() < 3


def test_a_run_comes_into_the_gallery(tmp_path, capsys):
    folder = write_run(tmp_path / "runs" / "first")
    (folder / "timelapse.webp").write_bytes(b"frames")
    images = [np.full((8, 8, 3), level, np.float32) for level in (0.0, 0.2, 0.4, 1.0)]
    save_distilled(
        folder / "distilled", np.stack(images), np.arange(4, dtype=np.int32), ["a", "b", "c", "d"]
    )
    assert write_gallery.main([str(folder)], tmp_path / "docs") == 0
    (record,) = write_gallery.read_records(tmp_path / "docs" / "gallery").values()
    assert record["accuracy"]["near"]["distilled"] == {"top1_mean": 80.5, "top1_std": 1.0}
    assert record["seed"] == 0
    with Image.open(tmp_path / "docs" / "gallery" / "first.webp") as joined:
        assert np.asarray(joined.convert("L"))[0, ::8].tolist() == [0, 51, 102, 255]
    text = (tmp_path / "docs" / "gallery.md").read_text()
    assert "| near | 80.5 ± 1.0 | 70.0 ± 1.0 |" in text
    assert record["command"] in text.replace(" \\\n    ", " ")
    unfinished = write_run(tmp_path / "runs" / "going", finished=False)
    assert write_gallery.main([str(unfinished)], tmp_path / "docs") == 2
    assert "is no finished run" in capsys.readouterr().err


def test_numbers_of_the_quickstart_are_those_of_its_runs():
    runs = json.loads((DOCS / "quickstart.json").read_text())
    assert [run["seed"] for run in runs] == [0, 1, 2]
    first = runs[0]["accuracy"]
    of = {
        (name, method): np.array([run["accuracy"][name][method]["top1_mean"] for run in runs])
        for name, methods in first.items()
        for method in methods
    }
    mean = {place: values.mean() for place, values in of.items()}
    # The standard error over seeds; and of the first, over trainings.
    cell = {at: f"{mean[at]:.1f} ± {of[at].std(ddof=1) / 3**0.5:.1f}" for at in of}
    said = {at: "{top1_mean:.1f} ± {top1_std:.1f}".format(**first[at[0]][at[1]]) for at in of}
    own, other = first
    few, random, every = (
        {name: mean[name, method] for name in first} for method in ("distilled", "random", "full")
    )
    gap = [f"{(few[name] - random[name]) / (every[name] - random[name]):.2f}" for name in first]
    lead = [few[name] - mean[name, "centroids"] for name in first]
    four = ("distilled", "centroids", "random", "full")
    told = {
        "docs/quickstart.md": [
            *(f"| {TITLES[m]} | {cell[own, m]} | {cell[other, m]} |" for m in TITLES),
            f"| gap | {gap[0]} | {gap[1]} |",
            f"images are {lead[0]:.1f} points better than typical real ones on their own backbone, "
            f"and {lead[1]:.1f} on the other.",
        ],
        "configs/quickstart.py": [
            "distilled {:.1f}, nearest to class mean {:.1f}, random {:.1f}, full {:.1f}; on".format(
                *(mean[own, method] for method in four)
            ),
            ", ".join(f"{mean[other, method]:.1f}" for method in four),
        ],
        # What the first seed says on the terminal.
        "docs/index.md": [
            *(
                f"{TITLES[m]}{', 1 per class' * (m != 'full')} {said[own, m]} {said[other, m]}"
                for m in TITLES
            ),
            "10 images teach {:.1f} %, all 1,149 teach {:.1f} %".format(
                *(first[own][method]["top1_mean"] for method in ("distilled", "full"))
            ),
        ],
    }
    for page, sentences in told.items():
        text = " ".join((DOCS.parent / page).read_text().split())
        for sentence in sentences:
            assert sentence in text, page


def test_numbers_of_the_readme_are_those_of_its_picture():
    record = RECORDS["imagenette_lgm"]
    (entries,) = record["accuracy"].values()
    top1 = {method: f"{entry['top1_mean']:.1f}" for method, entry in entries.items()}
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    for words in (
        f"**10 images: {top1['distilled']} %. All {record['real_images']:,}: {top1['full']} %. "
        f"Ten random ones: {top1['random']} %. Ten typical ones: {top1['centroids']} %**",
        f"{record['seconds']['distill'] / 60:.0f} minutes on one CPU core",
    ):
        assert words in readme
    for name in ("imagenette_lgm_shown.webp", "imagenette_lgm_timelapse.webp"):
        assert f"(docs/gallery/{name})" in readme
