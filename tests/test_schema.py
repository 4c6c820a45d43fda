"""Files of a run that were edited or cut: one line that names the fault, or a page."""

import copy
import json

import pytest

from lgm_jax import runs, schema
from lgm_jax.errors import UserError
from lgm_jax.experiments import runner
from tests.launching import ROOT
from tests.marks import slow
from tests.report_pages import refuse, write
from tests.run_folders import write_run

WRONG = (None, [], {"x": None}, "x", -1.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with everything that `results.json` may hold, but without pictures, for speed."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "one", groups={"left": 90.0, "right": 7.0})
    results = json.loads((folder / runs.RESULTS).read_text())
    taught = copy.deepcopy(results["probe"])
    for entry in taught["near"].values():
        entry["teacher"] = "near"
    results |= {"taught": {"kd": {"near": taught["near"]}}, "test_images": 80}
    results |= {"labels": {"kind": "hard", "bytes": 32}, "pyramid": {"reached": 8, "finest": 8}}
    (folder / runs.RESULTS).write_text(json.dumps(results))
    (folder / runs.GALLERY).unlink()
    (folder / runs.TIMELAPSE).rmtree()
    return folder


def edited(value, depth=0):
    """Yields a value with each part left out, and of each wrong kind; of equal parts, the first."""
    if depth:
        yield from WRONG
    if isinstance(value, dict):
        for name in list(value)[: 1 if depth in (2, 3) and "top1_mean" not in value else None]:
            yield {each: part for each, part in value.items() if each != name}
            yield from ({**value, name: part} for part in edited(value[name], depth + 1))
    elif isinstance(value, list) and len(value) in (1, 2):
        yield from ([part, *value[1:]] for part in edited(value[0], depth + 1))


@pytest.mark.parametrize("name", [slow(runs.RESULTS), runs.CONFIG, runs.STAGES])
def test_an_edited_file_gives_a_page_or_one_line(folder, name, capsys):
    whole, path, codes = (folder / name).read_text(), folder / name, {0: 0, 2: 0}
    try:
        for content in edited(json.loads(whole)):
            path.write_text(json.dumps(content))
            codes[write(folder)] += 1
    finally:
        path.write_text(whole)
    assert min(codes.values()) > 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == codes[2]
    assert all(line.startswith(f"error: {folder}") for line in said)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(probe=[]), "probe is no JSON object"),
        (lambda r: r.pop("probe"), "it has no probe"),
        (lambda r: r["probe"]["near"]["full"].pop("top1_mean"), "probe.near.full has no top1_mean"),
        (lambda r: r["probe"]["near"]["full"].update(top1_runs=[]), "top1_runs is empty"),
        (lambda r: r["probe"]["far"]["full"].update(top1_runs=[1, "x"]), "top1_runs[1] is no numb"),
        (lambda r: r.update(ipc=True), "ipc is no number from 0 on"),
        (lambda r: r.update(backbones="near"), "backbones is no list"),
    ],
)
def test_the_fault_of_results_is_named(folder, tmp_path, capsys, change, words):
    results = json.loads((folder / runs.RESULTS).read_text())
    change(results)
    other = write_run(tmp_path / "other")
    (other / runs.RESULTS).write_text(json.dumps(results))
    line = refuse(capsys, folder, other, f"--out={tmp_path / 'both.html'}")
    assert f"{other / runs.RESULTS} is damaged: " in line
    assert words in line
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        runner._read(other)


_SECTION = "Class by class"


@pytest.mark.parametrize(
    ("change", "is_shown"),
    [
        (lambda rows: None, [True, True]),
        (lambda rows: rows["distilled"]["per_class"].pop(), [False, False]),
        (lambda rows: rows["distilled"].update(per_class=[None] * 4), [False, False]),
        (lambda rows: rows["centroids"]["per_class"].pop(), [True, False]),
        (lambda rows: rows["centroids"].update(per_class=[None] * 4), [True, False]),
        (lambda rows: rows["distilled"]["confusion"]["images"].pop(), [False, False]),
        (lambda rows: rows["distilled"]["confusion"].update(images=[0.2, 0.2]), [False, False]),
        (lambda rows: rows["distilled"]["confusion"].update({"class": [4, 0]}), [False, False]),
        (lambda rows: rows["distilled"]["confusion"].update(named=[-2, 0]), [False, False]),
        (lambda rows: rows["distilled"]["confusion"].update(named=[0.5, 0]), [False, False]),
        (lambda rows: rows["distilled"]["confusion"].update(named=[1.0, -1]), [True, True]),
    ],
)
def test_numbers_that_contradict_the_classes_are_not_shown(tmp_path, change, is_shown):
    folder = write_run(tmp_path / "one")
    results = json.loads((folder / runs.RESULTS).read_text())
    rows = results["probe"]["near"]
    rows["distilled"]["confusion"] = {"class": [0, 1], "named": [0, 2], "images": [20, 20]}
    change(rows)
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0
    _, section, after = (folder / runs.PAGE).read_text().partition(f">{_SECTION}</h2>")
    found = [bool(section), "centroids" in after.partition("</table>")[0]]
    assert found == is_shown


def test_classes_of_one_name_without_accuracies_have_a_page(tmp_path):
    folder = write_run(tmp_path / "one", names=("one", "one", "two", "three"))
    (folder / runs.GALLERY).unlink()
    results = json.loads((folder / runs.RESULTS).read_text())
    for rows in results["probe"].values():
        for row in rows.values():
            row.pop("per_class")
    (folder / runs.RESULTS).write_text(json.dumps(results))
    assert write(folder) == 0


def test_a_command_with_half_of_its_quotes_is_named(tmp_path, capsys):
    folder = write_run(tmp_path / "one")
    config = json.loads((folder / runs.CONFIG).read_text())
    (folder / runs.CONFIG).write_text(json.dumps(config | {"command": "python 'launch.py"}))
    assert "config.json is damaged: its command: No closing quotation" in refuse(capsys, folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"loss": 1}', '{"step": 1, "loss": null}', "\x00"])
def test_a_damaged_line_of_metrics_is_named(tmp_path, content):
    other = write_run(tmp_path / "other")
    (other / runs.METRICS).write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        runner._read(other)


def test_results_of_earlier_commits_have_the_form():
    published = sorted((ROOT / "docs" / "results" / "runs").glob("*.json"))
    assert published
    for path in published:
        for run in json.loads(path.read_text())["runs"].values():
            assert schema.find_fault(run["results"], schema.RESULTS) is None
            assert schema.find_fault(run["metrics"], schema.METRICS) is None
