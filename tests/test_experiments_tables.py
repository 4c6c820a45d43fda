"""Tables, claims and figures of experiments, from accuracies as finished runs would have them."""

import csv
import io
import math

import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import common
from lgm_jax import experiments
from lgm_jax.errors import UserError
from lgm_jax.experiments import figures, frame, paper, published, result, runner
from lgm_jax.report import vocabulary
from tests.experimenting import (
    SECONDS,
    fabricate,
    flat_score,
    load,
    outcomes_of,
    studies_of,
    tabulate,
)


def number(name, backbone, evaluated, method="distilled", variant=""):
    """A number of the paper, by one pair of backbones."""
    return published.numbers()[name, variant, method, "top-1", frozenset([(backbone, evaluated)])]


def select(outcomes, **where):
    return [each for each in outcomes if where.items() <= each.axes.items()]


def cell_of(ddof=1, method="distilled", **probes):
    """A cell of entries by `SEED_BACKBONE`, each the accuracies of its probe runs."""
    rows = [
        {
            "set": "digits",
            "backbone": backbone,
            "variant": "",
            "seed": int(seed[1:]),
            "evaluated": backbone,
            "method": method,
            "run": run,
            "metric": "top-1",
            "value": value,
        }
        for place, values in probes.items()
        for seed, backbone in [place.split("_")]
        for run, value in enumerate(values)
    ]
    config = load("table1", ":embedded", f"--config.probe.ddof={ddof}")
    study = frame.Study(config, "digits", [], frame.make(rows))
    placed = study.placed.assign(row="r", column="c")
    return study.table(placed, "", "", "row", "column").cells["r", "c"]


def test_papers_averages_are_those_of_its_numbers():
    averages = 0
    for (*place, pairs), (mean, _) in published.numbers().items():
        if len(pairs) > 1:
            own = [published.numbers().get((*place, frozenset([pair]))) for pair in pairs]
            if None not in own:
                averages += 1
                # Rounded, as are those that it is the mean of.
                assert np.isclose(np.mean([value for value, _ in own]), mean, atol=0.101), place
    # Eight sets of five methods; two sets of four backbones; and of a table of parts, four.
    assert averages >= 8 * 5 + 2 * 4 + 4


def test_papers_tables_agree_where_they_say_the_same():
    """Figure 3's ten augmentations are the recipe's, and so are the first rows of table 3."""
    for backbone in paper.BACKBONES:
        dino = "dinov2_vitb14"
        ten = number("imagenet-100", dino, backbone, variant="copies10")
        assert ten == number("imagenet-100", dino, backbone)
        others = [(backbone, other) for other in paper.BACKBONES if other != backbone]
        key = "imagenet-100", "", "distilled", "top-1", frozenset(others)
        mean = np.mean([number("imagenet-100", *pair)[0] for pair in others])
        assert np.isclose(published.numbers()[key][0], mean, atol=0.101)


@pytest.mark.parametrize(
    ("place", "mean"),
    [
        (("imagenet-1k", "clip_vitb16", "clip_vitb16"), 63.0),
        (("imagenet-1k", "eva02_vitb14", "mocov3_vitb16"), 51.8),
        (("food", "real", "dinov2_vitb14", "full"), 92.7),
        (("imagenet-100", "mocov3_vitb16", "mocov3_vitb16", "distilled", "no-pyramid"), 80.5),
        (("imagenet-100", "dinov2_vitb14", "clip_vitb16", "distilled", "copies5"), 73.5),
    ],
)
def test_numbers_of_the_paper(place, mean):
    assert number(*place)[0] == mean


def test_spread_over_distillation_seeds_and_over_probe_runs_are_told_apart():
    found = cell_of(s0_a=(70.0, 72.0), s1_a=(74.0, 78.0))
    assert np.isclose(found.mean, 73.5)
    assert np.isclose(found.std, np.std([71, 76], ddof=1))
    assert np.isclose(found.probe_std, np.mean([np.sqrt(2), 2 * np.sqrt(2)]))
    assert (found.seeds, found.probe_runs) == (2, 2)
    assert np.isclose(cell_of(0, s0_a=(70.0, 72.0)).probe_std, 1)
    # Of the average over backbones, it is the spread of averages.
    found = cell_of(s0_a=(70.0,), s0_b=(80.0,), s1_a=(80.0,), s1_b=(70.0,))
    assert (found.mean, found.std, found.probe_std) == (75.0, 0.0, None)
    real = cell_of(s0_a=(70.0, 72.0), s1_a=(74.0, 78.0), method="centroids")
    assert (real.std, real.seeds) == (None, 0)
    one = cell_of(s0_a=(70.0,))
    assert (one.std, one.seeds, result.format_cell(one, 1)) == (None, 1, "70.0")


def test_a_number_that_is_missing_is_not_left_out_of_a_mean():
    found = cell_of(s0_a=(70.0,), s1_a=(math.nan,), s2_a=(74.0,))
    assert math.isnan(found.mean)
    assert (found.seeds, found.probe_runs) == (3, 1)
    assert not result.Claim.ahead("ahead", {"a": math.nan, "b": 1.0}).holds
    assert not result.Claim.ahead("ahead", {"a": 1.0, "b": math.nan}).holds


def test_table_csv_has_a_line_per_number_and_the_papers_beside_it():
    text = experiments.to_csv(studies_of(load("table2"), flat_score))
    rows = list(csv.DictReader(io.StringIO(text)))
    # Two sets, four backbones and two methods of real images, by four backbones and two probes.
    assert len(rows) == 2 * (4 + 2) * 4 * 2
    assert rows[0] == {
        "set": "imagenet-100",
        "backbone": "real",
        "variant": "",
        "seed": "",
        "evaluated": "clip_vitb16",
        "method": "random",
        "run": "0",
        "metric": "top-1",
        "value": "49",
        "paper": "56.6",
        "paper_std": "1.6",
    }
    last = rows[-1]
    assert (last["backbone"], last["evaluated"], last["seed"], last["run"]) == (
        *("mocov3_vitb16", "eva02_vitb14", "0", "1"),
    )
    assert (float(last["value"]), float(last["paper"])) == (71, 57.2)


def test_table1_has_our_numbers_beside_the_papers():
    def score(where, method, backbone):
        return flat_score(where, method, backbone) + 2 * where.get("seed", 0)

    config = load("table1", "", "--config.experiment.seeds=2")
    found = tabulate(config, score)
    table = found.tables[0]
    assert (table.title, table.columns[:2]) == ("ImageNet-100", ["CLIP", "DINO-v2"])
    cell = table.cells["distilled", "CLIP"]
    assert result.format_cell(cell, 1) == "71.0 ± 1.4 (1.0) [84.9 ± 0.1]"
    # Random images are not distilled.
    assert result.format_cell(table.cells["random real", "CLIP"], 1) == "50.0 (1.0) [56.6 ± 1.6]"
    assert table.cells["all real", "Average"].paper[0] == 92.8
    gap = found.tables[1].cells["Gap", "CLIP"]
    assert np.isclose(gap.mean, (71 - 50) / (90 - 50))
    assert np.isclose(gap.paper[0], (84.9 - 56.6) / (92.5 - 56.6))
    assert [claim.holds for claim in found.claims] == [True, True]
    text = result.to_markdown(found)
    assert "std over 2 distillation seeds" in text
    assert "| distilled | 71.0 ± 1.4 (1.0) [84.9 ± 0.1] |" in text


def test_claim_that_does_not_hold_is_reported():
    def score(where, method, backbone):
        return 60.0 if method == "neighbors" and backbone == "digits_distilled" else 55.0

    found = tabulate(load("table1", ":embedded"), score)
    (claim,) = found.claims
    assert not claim.holds
    assert "digits_distilled by -5.0" in claim.detail
    assert "**no**" in result.to_markdown(found)
    assert "Embedded data and backbones" in result.to_markdown(found)
    assert found.tables[0].cells["distilled", "digits_contrastive"].paper is None


def test_table2_is_by_source_and_evaluation():
    def score(where, method, backbone):
        if method != "distilled":
            return 30.0
        return 80.0 if where["backbone"] == backbone else 60.0

    found = tabulate(load("table2"), score)
    cells = found.tables[1].cells
    assert cells["CLIP", "CLIP"].mean == 80
    assert (cells["CLIP", "EVA-02"].mean, cells["CLIP", "EVA-02"].paper[0]) == (60, 59.7)
    assert (cells["CLIP", "Average"].mean, cells["CLIP", "Average"].paper[0]) == (65, 54.7)
    assert cells["all real", "MoCo-v3"].paper[0] == 76.5
    assert all(claim.holds for claim in found.claims)
    assert "by +20.0" in found.claims[0].detail


def test_table3_compares_parts_on_the_same_and_on_other_backbones():
    cost = {"no-decorrelate": 1, "no-pyramid": 3, "no-augment": 10}

    def score(where, method, backbone):
        same = where["backbone"] == backbone
        return (80.0 if same else 70.0) - cost.get(where["variant"], 0) * (1 if same else 2)

    found = tabulate(load("table3"), score)
    same, others = found.tables
    assert (
        same.cells["without pyramid", "CLIP"].mean,
        same.cells["without pyramid", "CLIP"].paper[0],
    ) == (*(77, 83.5),)
    assert (
        others.cells["without pyramid", "Average"].mean,
        others.cells["without augment", "CLIP"].paper[0],
    ) == (*(64, 35.3),)
    assert "without decorrelate, pyramid, augment" in same.rows
    assert [claim.holds for claim in found.claims] == [True, True, True]


def test_figure3_is_by_copies():
    def score(where, method, backbone):
        return 60.0 + int(where["variant"].removeprefix("copies"))

    config = load("figure3")
    (table,) = tabulate(config, score).tables
    assert table.rows == ["1", "3", "5", "10", "20"]
    assert (table.cells["5", "CLIP"].mean, table.cells["5", "CLIP"].paper[0]) == (65, 73.5)
    assert table.cells["20", "CLIP"].paper is None
    copies = {each.copies for each in experiments.planned_configs(config).values()}
    assert copies == {1, 3, 5, 10, 20}


def test_ipc_has_as_many_real_images():
    configs = experiments.planned_configs(load("ipc"))
    assert {each.ipc for each in configs.values()} == {1, 2, 5, 10}
    (first, *_) = tabulate(load("ipc"), flat_score).tables
    assert (first.cells["5", "distilled"].mean, first.cells["5", "all real"].mean) == (70, 90)


def test_objectives_at_equal_time_make_as_many_steps_as_fit():
    config = load("objectives", ":embedded", "--config.experiment.seeds=1")
    runs = outcomes_of(config, flat_score)
    (sfm,) = select(runs, backbone="digits_contrastive", variant="sfm-1000-steps")
    (clp,) = select(runs, backbone="digits_contrastive", variant="clp-250-steps")
    assert (sfm.planned.changes["steps"], clp.planned.changes["steps"]) == (1000, 250)
    tables = {table.title: table for table in tabulate(config, flat_score).tables}
    assert tables["digits, equal time"].cells["sfm", "steps"].mean == 1000
    written = result.to_markdown(tabulate(config, flat_score))
    assert "| 1000 |\n" in written
    assert "| 70.0 (1.4) | 70.0 (1.4) |" in written
    drawn = Figure()
    tabulate(config, flat_score).draw(drawn)
    # Steps have no place among percentages.
    assert max(axes.get_ylim()[1] for axes in drawn.axes) < 100
    cost = tables["digits, cost"].cells
    assert (cost["clp", "ms a step"].mean, cost["clp", "MB"].mean) == (4000, 5)


def test_objectives_of_equal_cost_are_run_once(monkeypatch):
    monkeypatch.setitem(SECONDS, "sfm", SECONDS["lgm"])
    config = load("objectives", ":embedded", "--config.experiment.seeds=1")
    names = [run.planned.name for run in outcomes_of(config, flat_score)]
    assert not [name for name in names if "sfm" in name and name.endswith("-steps_seed0")]
    tables = {table.title: table for table in tabulate(config, flat_score).tables}
    cells = tables["digits, equal time"].cells
    assert cells["sfm", "steps"] == cells["lgm", "steps"]
    assert (
        cells["sfm", "same backbone"] == tables["digits, equal steps"].cells["sfm", "same backbone"]
    )


def test_probes_with_a_teacher_have_tables_of_their_own():
    """Beside random images, which learn from it as well; other tables stay as they are."""
    taught = ("--config.probe.solver=adam", "--config.probe.teacher=kd,ci")
    scores = {"distilled, kd": 71.0, "distilled, ci": 85.0, "random, kd": 55.0, "random, ci": 80.0}

    def score(where, method, backbone):
        if "," not in method:
            return flat_score(where, method, backbone)
        return scores[method] + (where["variant"] == "sfm")

    plain, config = (load("objectives", ":embedded", *flags) for flags in ((), taught))
    for name, each in experiments.planned_configs(config).items():
        common.check(each)
        assert each.baselines == "random,full", name
    tables = {table.title: table for table in tabulate(config, score).tables}
    cells = tables["digits, with a teacher, equal steps"].cells
    assert tables["digits, with a teacher, equal steps"].columns == [
        *("kd, same backbone", "kd, other backbones"),
        *("ci, same backbone", "ci, other backbones"),
    ]
    assert cells["lgm", "kd, same backbone"].mean == 71
    assert cells["sfm", "ci, other backbones"].mean == 86
    assert cells["random real", "ci, same backbone"].mean == 80
    assert cells["lgm", "kd, same backbone"].seeds == 5
    # The run of 1,000 steps is another variant.
    cells = tables["digits, with a teacher, equal time"].cells
    assert (
        cells["sfm", "ci, same backbone"].mean,
        cells["random real", "kd, same backbone"].mean,
    ) == (*(85, 55),)
    without = {table.title: table for table in tabulate(plain, score).tables}
    assert {title: tables[title].cells for title in without} == {
        title: table.cells for title, table in without.items()
    }
    lines = experiments.to_csv(studies_of(config, score))
    assert {row["metric"] for row in csv.DictReader(io.StringIO(lines))} >= {"top-1, kd", "top-1"}


def test_clp_is_searched_on_validation_images():
    def score(where, method, backbone):
        return 70.0 + (where["variant"] == "ridge0.2-temperature0.1")

    config = load("clp", ":embedded")
    found = tabulate(config, score)
    assert found.tables[0].cells["0.2", "0.1"].mean == 71
    assert "best: ridge 0.2, temperature 0.1" in found.notes[-1]
    for each in experiments.planned_configs(config).values():
        assert (each.objective, each.probe.split) == ("clp", "val")
    one = experiments.planned_configs(config)[
        "digits_digits_contrastive_ridge2-temperature0.03_seed0"
    ]
    assert (one.clp.ridge, one.clp.temperature) == (2, 0.03)


def test_several_backbones_are_compared_with_each_where_neither_was_used():
    names = ("here/first", "there/second", "there/third")
    flags = [f"--config.experiment.backbones={','.join(names)}", "--config.experiment.sources="]

    def score(where, method, backbone):
        return 75.0 if "+" in where["backbone"] else 70.0

    config = load("objectives", ":imagenette", *flags)
    found = tabulate(config, score)
    table = found.tables[-1]
    assert table.cells["first + third", "second"].mean == 75
    assert len(found.claims) == 3
    assert all(claim.holds and "by +5.0" in claim.detail for claim in found.claims)
    joint = experiments.planned_configs(config)["given_first+third_seed0"]
    assert joint.backbone.name == "here/first,there/third"


def test_dots_matrices_and_curves_are_drawn():
    for name, scale in (("table1", ":embedded"), ("table2", ""), ("figure3", "")):
        found = tabulate(load(name, scale), lambda *_: 60.0)
        png, svg = figures.render(found.draw, ("png", "svg"))
        assert png.startswith(b"\x89PNG")
        assert b"digits" in svg if scale else b"ImageNet-100" in svg
    # The same numbers give the same files.
    assert figures.render(found.draw, ("png", "svg")) == [png, svg]


def drawn_rows(name, scale, score):
    """The axes of an experiment's figure, and the text beside and within each."""
    figure = Figure(layout="constrained")
    with matplotlib.style.context(figures.STYLE):
        tabulate(load(name, scale, "--config.experiment.seeds=2"), score).draw(figure)
    return [(axes, [text.get_text() for text in axes.texts]) for axes in figure.axes]


def test_a_matrix_names_its_rows_and_its_columns():
    found = tabulate(load("clp", ""), lambda *_: 60.0)
    figure = Figure(layout="constrained")
    found.draw(figure)
    labels = {(axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes}
    assert labels == {("ridge", "temperature")}


def test_a_row_has_its_colour_its_value_its_error_bar_and_the_papers_mark():
    def score(where, method, backbone):
        return flat_score(where, method, backbone) + 2 * where.get("seed", 0)

    (_, (axes, texts)) = drawn_rows("table5", "", score)[:2]
    assert texts[:3] == ["CLIP", "71.0 ± 1.4 [62.2]", "51.0 (1.0) [54.3]"]
    rows = [label.get_text() for label in axes.get_yticklabels()[:5]]
    assert rows == list(vocabulary.TITLES.values())
    marks = {
        (line.get_marker(), *np.ravel(line.get_xydata()).tolist()): line.get_color()
        for line in axes.lines
    }
    # From above: the heading of the column, the row of distilled images, that of typical real ones.
    assert marks["o", 71.0, 1.0] == vocabulary.COLOURS["distilled"][0]
    assert marks["o", 51.0, 2.0] == vocabulary.COLOURS["centroids"][0]
    assert ("D", 62.2, 1.0) in marks
    std = 2**0.5
    assert any(np.allclose(mark[1:], (71 - std, 1, 71 + std, 1)) for mark in marks if mark[3:])


def test_the_papers_average_over_other_images_stands_on_the_rows_of_ours():
    ((_, texts),) = drawn_rows("table1", ":embedded", flat_score)
    assert "the paper's average, ImageNet-100" not in texts
    assert texts[texts.index("Average") + 1] == "70.0 ± 0.0 [87.2]"
    assert texts[texts.index("digits_masked") + 1] == "70.0 ± 0.0"


def test_a_row_of_table_3_has_a_mark_for_each_part():
    (marks, _), (same, texts), (others, _) = drawn_rows("table3", ":embedded", lambda *_: 60.0)
    assert [label.get_text() for label in marks.get_xticklabels()] == [
        *("decorrelate", "pyramid", "augment"),
    ]
    filled = {
        tuple(*line.get_xydata().tolist())
        for line in marks.lines
        if line.get_markerfacecolor() != "none"
    }
    # The full method, then without each part, without each two, without any.
    assert {(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (0, 2), (2, 4)} <= filled
    assert len(filled) == 3 + 3 * 2 + 3
    assert texts[0] == "60.0 ± 0.0 [87.2]"
    assert len(texts) == 8
    assert same.get_xlabel() == others.get_xlabel() == "top-1 %"


def test_svg_has_light_ink_on_dark_pages():
    found = tabulate(load("table1", ":embedded"), flat_score)
    (svg,) = figures.render(found.draw, ["svg"])
    light, dark = vocabulary.COLOURS["distilled"]
    assert f'[style*="fill: {light}"]{{fill:{dark}!important}}'.encode() in svg
    assert f"fill: {light}".encode() in svg.partition(b"</style>")[2]
    # No paper of its own.
    assert b"fill: #ffffff" not in svg


def test_ten_classes_have_colours_that_differ():
    for scheme in zip(*vocabulary.class_colours(10), strict=True):
        rgb = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in scheme])
        apart = np.abs(rgb[:, None] - rgb[None]).sum(-1) + 1000 * np.eye(10, dtype=int)
        assert apart.min() > 60
    # Red, on light paper and on dark: of OKLCH 0.42 and 0.66, chroma 0.14, hue 28.8 degrees.
    assert vocabulary.class_colours(10)[0] == ("#89221a", "#da6d5f")


def test_seconds_of_a_step_leave_out_compilation_and_restarts():
    changes = {"stages": "distill", "eval_backbones": "a", "objective": "sfm"}
    planned = runner.Planned({"seed": 0}, changes)
    run = fabricate(planned, lambda *_: 50.0)
    assert run.seconds_per_step() == 1.0
    # A process that was started again after step 6.
    times = [(2, 100.0), (4, 102.0), (6, 104.0), (8, 190.0), (10, 192.0)]
    lines = [{"step": step, "seconds": seconds} for step, seconds in times]
    assert runner.Outcome(planned, run.results, lines).seconds_per_step() == 1.0
    with pytest.raises(UserError, match="log_every"):
        runner.Outcome(planned, run.results, lines[:1]).seconds_per_step()
