"""A result that cannot be right, or is no use, is called so wherever it is shown."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_folders import probe_entry, write_run

import launch
from lgm_jax import experiments, runs, share
from lgm_jax.distilled import DistilledSet
from lgm_jax.experiments import runner
from lgm_jax.report import __main__ as report
from lgm_jax.stages import reporting
from tests.launching import opened

QUICK = "--config=configs/quickstart.py:quick"


def results_of(means, std=1.0, **changes):
    """Results of four classes on 400 test images, by backbone and method."""
    probe = {
        backbone: {method: probe_entry(mean, std) for method, mean in found.items()}
        for backbone, found in means.items()
    }
    return {"num_classes": 4, "steps": 30, "test_images": 400, "probe": probe, **changes}


def judge(results):
    from lgm_jax.report import judge

    return judge.judge(results)


def titles(*given, **named):
    return [finding.title for finding in judge(results_of(*given, **named))]


GOOD = {"distilled": 80.0, "centroids": 70.0, "neighbors": 65.0, "random": 60.0, "full": 90.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        # The difference is within the error of measurement.
        ({"full": 79.0}, []),
        ({"full": 52.0}, ["cannot be right"]),
        ({"full": 52.0, "distilled": 50.0}, ["cannot be right", "worse than random images"]),
        ({"distilled": 59.5}, ["no better than random images"]),
        ({"distilled": 61.0}, ["not clearly better than random images"]),
        ({"distilled": 40.0}, ["worse than random images"]),
        ({"distilled": 27.0}, ["no better than guessing", "worse than random images"]),
        (dict.fromkeys(GOOD, 25.0), ["no better than guessing"] * 2),
        ({"distilled": float("nan")}, ["not a number"]),
        ({"full": None}, ["not a number"]),
    ],
)
def test_findings_of_accuracies(changes, expected):
    assert titles({"near": GOOD | changes}) == expected
    assert titles({"far": GOOD, "near": GOOD | changes}) == expected


def test_findings_name_the_backbone_and_the_numbers():
    (found,) = judge(results_of({"near": GOOD | {"full": 52.0}, "far": GOOD}))
    assert found.backbone == "near"
    assert found.text.startswith("On near, all real images reach 52.0 %, less than")
    assert "the distilled images (80.0 %)" in found.text
    assert "probe.full_epochs" in found.text


def test_findings_of_images():
    assert titles({}, pyramid={"reached": 256, "finest": 256}) == []
    assert titles({}, pyramid={"reached": 32, "finest": 256}) == ["unfinished"]
    assert titles({}, pyramid=None, steps=0) == ["not distilled"]
    assert titles({}, final_loss=float("inf")) == ["diverged"]
    # One class leaves nothing to guess; without probes nothing was measured.
    assert titles({"near": {"distilled": 100.0, "full": 100.0}}, num_classes=1) == []


def rewrite(folder, means, **changes):
    """Gives a run's results other accuracies on its first backbone."""
    results = json.loads((folder / runs.RESULTS).read_text())
    results["probe"]["near"] = {name: probe_entry(mean) for name, mean in means.items()}
    (folder / runs.RESULTS).write_text(json.dumps(results | changes))


def page_of(folder):
    assert report.main([str(folder)]) == 0
    return (folder / "report.html").read_text()


def test_page_warns_of_a_classifier_on_all_images_that_learned_too_little(tmp_path):
    folder = write_run(tmp_path / "run", evaluated=("near",))
    assert 'class="notice warning"' not in page_of(folder)
    # 154 % of it.
    rewrite(folder, GOOD | {"full": 52.0})
    page = page_of(folder)
    assert "<title>shapes, distilled: cannot be right</title>" in page
    assert "Cannot be right." in page
    assert "Raise probe.full_epochs" in page
    assert "% of the accuracy of all real images" not in page
    assert "more than with all real images" not in page
    assert "further than all" not in page


@pytest.mark.parametrize(("images", "found"), [(50_000, True), (400, False)])
def test_page_measures_nothing_against_a_classifier_that_cannot_be_right(tmp_path, images, found):
    """By the number of test images, in every sentence: 4 points may be chance on a few."""
    folder = write_run(tmp_path / "run", evaluated=("near",))
    rewrite(folder, GOOD | {"full": 76.0}, test_images=images)
    page = page_of(folder)
    assert ("Cannot be right." in page) == found
    assert ("further than all" in page) != found
    assert ("more than with all real images" in page) != found


def test_page_and_comparison_warn_of_images_that_are_worse_than_random_ones(tmp_path):
    good, bad = (write_run(tmp_path / name, evaluated=("near",)) for name in ("good", "bad"))
    rewrite(bad, GOOD | {"distilled": 38.0}, pyramid={"reached": 8, "finest": 32})
    page = page_of(bad)
    assert "<title>shapes, distilled: unfinished</title>" in page
    assert "The images are no finer than 8 of 32 px" in page
    assert "Worse than random images." in page
    out = tmp_path / "compare.html"
    assert report.main([str(good), str(bad), f"--out={out}"]) == 0
    compared = out.read_text()
    assert compared.count('class="notice warning"') == 2
    assert "near (bad): On near, the distilled images reach 38.0 %" in compared


def test_table_of_an_experiment_lists_doubtful_runs(tmp_path):
    changes = {"eval_backbones": "here/near"}
    planned = [runner.Planned({"seed": seed}, changes) for seed in range(13)]
    outcomes = [
        runner.Outcome(each, results_of({"near": GOOD | {"distilled": 40.0 if n else 80.0}}))
        for n, each in enumerate(planned)
    ]
    (text,) = experiments.findings(outcomes)
    assert "- seed 1: worse than random images. On near, the distilled images reach 40.0 %" in text
    assert "seed 0" not in text
    assert "seed 11" not in text
    assert "- and 2 more" in text
    assert experiments.findings(outcomes[:1]) == []
    # Another experiment's, of the same run.
    other = [
        dataclasses.replace(outcomes[1], planned=runner.Planned({}, {"eval_backbones": "far"}))
    ]
    assert experiments.findings(other) == []


def test_card_warns_of_images_that_are_worse_than_random_ones():
    images = DistilledSet(np.zeros((4, 8, 8, 3), np.float32), np.arange(4), list("abcd"), None)
    made = {"dataset": "shapes", "ipc": 1, "objective": "lgm", "backbones": ["near"]}
    found = results_of({"near": GOOD | {"distilled": 38.0}}, **made)
    found["pyramid"] = {"reached": 4, "finest": 32}
    record = {"inputs": {}, "made_by": []}
    card = share.write_card(share.Finished(images, found, record), "me/set")
    assert "**worse than random images**: On near, the distilled images reach 38.0 %" in card
    assert "**unfinished**: The images are no finer than 4 of 32 px" in card


def test_terminal_names_the_faults_of_results(tmp_path, capsys):
    session = opened(tmp_path / "run", QUICK)
    found = results_of(
        {"near": GOOD | {"distilled": 40.0}, "far": GOOD | {"full": 52.0}},
        ipc=1,
        backbones=["near"],
        pyramid={"reached": 4, "finest": 32},
    )
    capsys.readouterr()
    reporting._print_result(session, found)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    expected = [
        "note: unfinished: The images are no finer than 4 of 32 px",
        "note: worse than random images: On near, the distilled images reach 40.0 %",
        "note: cannot be right: On far, all real images reach 52.0 %",
    ]
    assert len(notes) == 3
    assert all(map(str.startswith, notes, expected)), notes


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """A run of one step, whose probes have had a single iteration."""
    workdir = tmp_path_factory.mktemp("poor") / "run"
    arguments = [QUICK, "--config.steps=1", "--config.images.grow_every=1", "--config.seed=1"]
    arguments += ["--config.baselines=random", "--config.probe.epochs=50"]
    assert launch.main(["launch.py", *arguments, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.slow
def test_terminal_page_and_card_say_that_a_run_is_no_use(poor, tmp_path, capsys):
    folder = Path(shutil.copytree(poor, tmp_path / "run"))
    results = json.loads((folder / "results.json").read_text())
    assert results["pyramid"] == {"reached": 4, "finest": 32}
    # Whatever the images are, these numbers are worse than random images give.
    stages = json.loads((folder / "stages.json").read_text())
    for name, record in stages.items():
        if name.startswith(("probe/", "baselines/")):
            mean = 20.0 if name.startswith("probe/") else 70.0
            record["result"] |= {"top1_mean": mean, "top1_runs": [mean, mean], "top1_std": 1.0}
    (folder / "stages.json").write_text(json.dumps(stages))
    capsys.readouterr()
    arguments = [QUICK, "--config.steps=1", "--config.images.grow_every=1", "--config.seed=1"]
    arguments += ["--config.baselines=random", "--config.probe.epochs=50"]
    assert launch.main(["launch.py", *arguments, f"--workdir={folder}"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^note: unfinished: The images are no finer than 4 of 32 px", out, re.M)
    assert re.search(r"^note: worse than random images: On digits_contrastive, the", out, re.M)
    assert "Worse than random images." in (folder / "report.html").read_text()
    card = share.write_card(share.read_run(folder), "me/set")
    assert "**worse than random images**: On digits" in card
    assert "**unfinished**: The images are no finer than 4 of 32 px" in card


@pytest.mark.slow
def test_short_runs_log_every_step_and_draw_a_curve(poor, tmp_path):
    """One step is a dot; more are a line."""
    lines = (poor / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    page = (poor / "report.html").read_text()
    assert re.search(r'<path class="line only" d="M[\d.]+ [\d.]+h0"', page)
    assert len(list((poor / "timelapse").iterdir())) == 2
