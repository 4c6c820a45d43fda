"""The comparison of several runs, and what is refused."""

import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from lgm_jax import runs
from lgm_jax.report import compare, pictures, view
from tests.report_pages import Tags, refuse, write
from tests.run_folders import NAMES, write_run


def test_other_runs_images_lie_beside(tmp_path, reported):
    folder = write_run(tmp_path / "own")
    assert write(folder, f"--beside={reported}") == 0
    text = (folder / "report.html").read_text()
    assert text.count('data-title="distilled for near"') == 4
    (expected,) = pictures.shrink([view.first_pictures(view.read_run(reported).gallery)[2]], 160)
    assert pictures.data_uri(expected) in text


def test_comparison_sets_classes_side_by_side(tmp_path, reported):
    other = write_run(tmp_path / "other", names=NAMES[::-1], backbone="far", seed=1)
    out = tmp_path / "deep" / "compare.html"
    assert write(reported, other, f"--out={out}") == 0
    text = out.read_text()
    rows = re.findall(r'<tr data-name="(\w+)" data-label="\d" role="row">.*?</tr>', text, re.DOTALL)
    assert rows == list(NAMES)
    alts = [image["alt"] for image in Tags(text).of("img")]
    assert alts[:3] == [
        "zero, typical real image",
        "zero, distilled for near",
        "zero, distilled for far",
    ]
    # The other run orders its classes the other way round.
    expected = view.first_pictures(view.read_run(other).gallery)[3]
    assert Tags(text).of("img")[2]["src"] == pictures.data_uri(expected)
    assert text.count('class="mine"') == 2
    assert len([p for p in Tags(text).of("path") if p.get("class", "").startswith("line")]) == 2
    assert "different images or splits" not in text


def test_comparison_tells_backbones_of_one_name_apart(tmp_path):
    """With other settings in another run it is another backbone; equal ones share a column."""
    folders = [write_run(tmp_path / name, backbone=name) for name in ("one", "two")]
    for folder, near in zip(folders, ("a" * 64, "b" * 64), strict=True):
        stages = json.loads((folder / "stages.json").read_text())
        for name, fingerprint in (("near", near), ("far", "c" * 64)):
            record = {"inputs": {"backbone": fingerprint}, "result": {}}
            stages[f"probe/distilled/{name}"] = record
        (folder / "stages.json").write_text(json.dumps(stages))
    out = tmp_path / "compare.html"
    assert write(*folders, f"--out={out}") == 0
    columns = re.findall(r'<th scope="col">on ([^<]+)</th>', out.read_text())
    assert columns == ["near, as in one", "far", "near, as in two"]


def test_comparison_of_many_classes_has_pictures_beside_it(tmp_path):
    names = [f"class {i}" for i in range(250)]
    a, b = (write_run(tmp_path / name, names=names, side=8) for name in "ab")
    out = tmp_path / "compare.html"
    assert write(a, b, f"--out={out}") == 0
    images = Tags(out.read_text()).of("img")
    # With a typical real one of each class, and one enlarged.
    assert len(images) == 3 * 250 + 1
    assert all((tmp_path / image["src"]).is_file() for image in images)
    assert sorted(path.name for path in (tmp_path / "compare_pictures").iterdir()) == [
        "run0",
        "run1",
        "run2",
    ]


def many_to_few(monkeypatch):
    """Makes comparisons of a few pictures like those of many."""
    monkeypatch.setattr(compare, "MOST_PICTURES", 3)


def test_comparison_leaves_runs_alone(tmp_path, reported, capsys, monkeypatch):
    many_to_few(monkeypatch)
    a = Path(write_run(tmp_path / "a", seed=1))
    assert write(a) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # The run's own page, a page in a folder of it, a folder of pictures that is a run.
    assert "into the run" in refuse(capsys, reported, a, f"--out={a / 'report.html'}")
    assert "into the run" in refuse(capsys, reported, a, f"--out={a / 'deep' / 'x.html'}")
    a.rename(tmp_path / "x_pictures")
    line = refuse(capsys, reported, tmp_path / "x_pictures", f"--out={tmp_path / 'x.html'}")
    assert "into the run" in line
    (tmp_path / "x_pictures").rename(a)
    for name in ("cmp", "cmp.htm", ""):
        assert "is no HTML file" in refuse(capsys, reported, a, f"--out={tmp_path / name}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Beside a run of the page's name, its folder is not the one for pictures.
    assert write(reported, a, f"--out={tmp_path / 'a.html'}") == 0
    after = {path: path.read_bytes() for path in a.rglob("*") if path.is_file()}
    assert after == before


def test_comparison_removes_its_own_pictures_and_links_odd_names(tmp_path, reported, monkeypatch):
    many_to_few(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    others = [write_run(tmp_path / f"other{number}", seed=number) for number in (1, 2)]
    assert write(reported, *others, "--out=~/a #1 50%.html") == 0
    folder = tmp_path / "a #1 50%_pictures"
    (folder / "notes.txt").write_text("mine")
    assert write("~/other1", reported, "--out=~/a #1 50%.html") == 0
    sources = [image["src"] for image in Tags((tmp_path / "a #1 50%.html").read_text()).of("img")]
    assert len(sources) == 3 * 4 + 1
    assert not any(set("# ") & set(source) for source in sources)
    assert all((tmp_path / urllib.parse.unquote(source)).is_file() for source in sources)
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "run0", "run1", "run2"]
    monkeypatch.undo()
    assert write(reported, others[0], f"--out={tmp_path / 'a #1 50%.html'}") == 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_runs_of_one_backbone_are_told_apart(tmp_path, reported):
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    views = [view.read_run(write_run(folder)) for folder in folders]

    def titles(views):
        return [run.title for run in compare.name_runs(views)]

    assert titles(views) == ["near (a/x)", "near (b/x)", "near (b/y)"]
    assert titles(views[1:]) == ["near (x)", "near (y)"]
    far = view.read_run(write_run(tmp_path / "far", backbone="far"))
    assert titles([views[0], far]) == ["near", "far"]
    # A longer path would not tell a run from itself.
    assert titles([views[0], views[0]]) == ["near, 1", "near, 2"]
    assert titles([views[1], views[2], views[1]]) == ["near (x), 1", "near (y)", "near (x), 3"]


def test_comparison_lists_runs_of_one_fault_together(tmp_path, reported):
    folders = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate("xy")]
    for folder in folders:
        results = json.loads((folder / runs.RESULTS).read_text())
        results["pyramid"] = {"reached": 8, "finest": 32}
        (folder / runs.RESULTS).write_text(json.dumps(results))
    out = tmp_path / "compare.html"
    assert write(reported, *folders, f"--out={out}") == 0
    (notice,) = re.findall(r'<div class="notice warning".*?</div>', out.read_text(), re.DOTALL)
    assert notice.count("<strong>") == 1
    assert re.findall(r"<li>(near \(\w\)): ", notice) == ["near (x)", "near (y)"]


def test_runs_of_other_classes_are_refused_with_the_reason(tmp_path, reported, capsys):
    other = write_run(tmp_path / "other", names=("zero", "one", "two", "seven"))
    out = tmp_path / "compare.html"
    line = refuse(capsys, reported, other, f"--out={out}")
    assert "another set of classes" in line
    assert "lacks 'three' and has 'seven'" in line
    assert not out.exists()
    assert "another set of classes" in refuse(capsys, other, f"--beside={reported}")
    more = write_run(tmp_path / "more", names=(*NAMES, "four"))
    assert "has 'four'" in refuse(capsys, reported, more, f"--out={out}")
    twice = write_run(tmp_path / "twice", names=("crane", "crane", "a"))
    turned = write_run(tmp_path / "turned", names=("a", "crane", "crane"))
    assert "share a name" in refuse(capsys, twice, turned, f"--out={out}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no run"),
        (("nowhere",), "nowhere is no run's folder"),
        (("RUN", "--out=x.html"), "--out is for several runs"),
        (("RUN", "RUN"), "--out=compare.html"),
        (("RUN", "RUN", "--out=x.html", "--beside=RUN"), "--beside"),
        (("RUN", "--what"), "--what"),
        (("RUN", "nowhere", "--out=x.html"), "nowhere"),
    ],
)
def test_bad_arguments_are_refused(arguments, words, reported, capsys):
    assert words in refuse(capsys, *(a.replace("RUN", str(reported)) for a in arguments))


def test_damaged_and_unfinished_folders_are_named(tmp_path, reported, capsys):
    damaged = write_run(tmp_path / "damaged")
    (damaged / runs.GALLERY).write_bytes(b"PK")
    assert "gallery.npz is damaged" in refuse(capsys, damaged)
    (damaged / runs.STAGES).write_text('{"distill": null}')
    assert "stages.json is damaged: distill is no JSON object" in refuse(capsys, damaged)
    going = write_run(tmp_path / "going", finished=False)
    out = f"--out={tmp_path / 'x.html'}"
    assert "no distilled images yet" in refuse(capsys, reported, going, out)
    (going / runs.METRICS).write_text("{}\n")
    assert "metrics.jsonl is damaged" in refuse(capsys, going)


def test_command_line_explains_itself(capsys):
    assert write("--help") == 0
    assert "--beside" in capsys.readouterr().out


def test_importing_the_package_brings_no_template_engine():
    code = "import sys, lgm_jax, lgm_jax.report.page; print('jinja2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr
