"""Experiments that look at features: what is planned, and what is made of the numbers found."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from etils import epath
from PIL import Image

import launch
from lgm_jax import experiments
from lgm_jax.errors import UserError
from lgm_jax.experiments import measures, paper, published, result
from lgm_jax.experiments.runner import Outcome

NAMES = ("table4", "table6", "figure4", "class_means")


def _config_of(name: str) -> ModuleType:
    return importlib.import_module(f"configs.experiments.{name}")


def _tabulate(config: Any, fill: Callable[[Any], dict[str, Any]]) -> result.Result:
    """The result of finished runs of everything that is planned, each as `fill` says."""
    sweep = experiments.find(config)
    # Of these experiments, the numbers are those that they measure.
    planned = [
        dataclasses.replace(each, changes={**each.changes, "stages": "report"})
        if config.experiment.name != "table4"
        else each
        for each in sweep.plan(config, {})
    ]
    outcomes = [
        dataclasses.replace(Outcome(each, {"probe": {}, "dataset": "photos"}), **fill(each))
        for each in planned
    ]
    return experiments.tabulate(sweep, config, sweep.studies(config, outcomes))


def _means(found: result.Result) -> dict[tuple[str, str, str], float]:
    return {
        (table.title, *place): cell.mean
        for table in found.tables
        for place, cell in table.cells.items()
        if cell.mean is not None
    }


def _write(folder: Any, found: result.Result) -> list[str]:
    return [path.name for path in result.write(epath.Path(folder), found, "")]


@pytest.mark.parametrize("stds", ["", "0", "small", "1,-1"])
def test_head_scales_must_be_positive(stds):
    config = _config_of("class_means").get_config("quick")
    config.experiment.head_stds = stds
    with pytest.raises(UserError, match=r"config\.experiment\.head_stds must be positive numbers"):
        experiments.planned_configs(config)


class TestTable4:
    def _result(self, tmp_path: Any, picture: bytes | None = None) -> result.Result:
        config = _config_of("table4").get_config("embedded")
        config.experiment.update(seeds=2, backbones="a,b")

        def fill(each: Any) -> dict[str, Any]:
            seed = each.axes.get("seed", 0)
            path = epath.Path(tmp_path) / each.name
            path.mkdir()
            Image.new("RGB", (8, 4)).save(path / measures.PICTURE)
            if picture is not None:
                (path / measures.PICTURE).write_bytes(picture)
            better = {"distilled": 10, "full": 20}
            scores = {
                method: {
                    "top1_mean": 50.0 + better.get(method, 0) + seed,
                    "top1_std": 1.0,
                    "top1_runs": [50.0 + better.get(method, 0) + seed + d for d in (-1, 1)],
                    "worst_group": 30.0 + better.get(method, 0) + 2 * seed,
                    "groups": {"even on yellow": 70.0 + seed, "even on blue": 30.0},
                }
                for method in ("distilled", "neighbors", "centroids", "random", "full")
            }
            return {
                "results": {"probe": {"a": scores, "b": scores}},
                "measured": {"train": {"even on yellow": 95, "even on blue": 5}},
                "path": path,
            }

        return _tabulate(config, fill)

    def test_has_groups_and_the_worst(self, tmp_path):
        found = {table.title: table.cells for table in self._result(tmp_path).tables}
        title = "digits on misleading tints"
        average = found[f"{title}: average"]["distilled", "a"]
        assert (average.mean, average.std) == (60.5, pytest.approx(0.5**0.5))
        worst = found[f"{title}: worst group"]["distilled", "b"]
        assert (worst.mean, worst.std) == (41.0, pytest.approx(2**0.5))
        # Seeds do not change these images: their spread is none of seeds.
        full = found[f"{title}: worst group"]["all real", "b"]
        assert (full.mean, full.std) == (50.0, None)
        by_group = found[f"{title}: by group, on a"]
        assert by_group["distilled", "even on yellow (95 in train)"].mean == 70.5

    def test_claims_compare_with_the_best_real_images(self, tmp_path):
        average, worst = self._result(tmp_path).claims
        assert average.holds
        assert worst.holds
        assert "a by +10.0" in average.detail

    def test_figure_shows_the_pictures(self, tmp_path):
        found = _write(tmp_path, self._result(tmp_path))
        assert found == ["table.md", "table.csv", "figure.png", "figure.svg"]

    @pytest.mark.parametrize("picture", [b"", b"\x89PNG\r\n\x1a\n torn"])
    def test_a_broken_picture_is_named_and_left_out(self, tmp_path, picture, capsys):
        found = self._result(tmp_path, picture)
        said = capsys.readouterr().out.splitlines()
        assert len(said) == 2
        assert all("groups.png cannot be read, and" in line for line in said)
        assert "distilled" in found.tables[0].rows
        (tmp_path / "out").mkdir()
        assert len(_write(tmp_path / "out", found)) == 4


class TestTable6:
    def _result(self, backbones: tuple[str, ...], scale: str | None = "embedded") -> result.Result:
        config = _config_of("table6").get_config(scale)
        config.experiment.update(seeds=2, backbones=",".join(backbones))
        order = [paper.BACKBONES.index(name) for name in backbones]
        transfer, aligned = (
            np.array(
                [
                    [
                        published.numbers()["imagenet-1k", "", *kind, frozenset([(a, b)])][0]
                        for b in paper.BACKBONES
                    ]
                    for a in paper.BACKBONES
                ]
            )[np.ix_(order, order)]
            for kind in (("distilled", "normalised 1-NN"), ("", "alignment"))
        )
        aligned = aligned.tolist()

        def fill(each: Any) -> dict[str, Any]:
            if each.axes["backbone"] == "real":
                return {"measured": {"mutual_knn": aligned, "linear_cka": aligned}}
            # Normalising takes off what seeds share.
            row = transfer[backbones.index(each.axes["backbone"])] * (0.5 + each.axes["seed"] / 10)
            evaluated = each.changes["eval_backbones"].split(",")
            return {"measured": row[[backbones.index(name) for name in evaluated]].tolist()}

        return _tabulate(config, fill)

    def test_gives_back_the_papers_numbers(self):
        found = self._result(paper.BACKBONES, None)
        cells = [cell for table in found.tables for cell in table.cells.values() if cell.paper]
        assert len(cells) == 16 + 16 + 4
        for cell in cells:
            assert cell.mean == pytest.approx(cell.paper[0], rel=1e-5)
        knn, cka = found.claims
        assert knn.holds
        assert cka.holds
        assert "r = 0.83 over 12 pairs" in knn.detail

    def test_two_backbones_give_no_coefficient_and_say_so(self, tmp_path):
        found = self._result(paper.BACKBONES[:2])
        assert not found.claims
        assert "with 2 backbones there is one alignment for all 2 pairs" in found.notes[1]
        assert "| mutual 10-NN alignment | - [0.83] |" in result.to_markdown(found)
        assert len(_write(tmp_path, found)) == 4


class TestFigure4:
    def _result(self) -> result.Result:
        config = _config_of("figure4").get_config("embedded")
        config.experiment.update(seeds=2, backbones="a")

        def fill(each: Any) -> dict[str, Any]:
            kinds = {
                kind: {
                    "quantile": [0.5, 1.0],
                    "ratio": [scale, 2 * scale],
                    "quantile_along": [0.5, 0.5],
                    "ratio_along": [0.7, 0.9 + each.axes["seed"]],
                    "labels": [0, 1],
                    "points": [[0.0, 1.0], [2.0, 3.0]],
                }
                for kind, scale in (("distilled", 1.1), ("centroids", 0.3), ("random", 0.8))
            }
            real = {"points": [[0.0, 0.0], [1.0, 1.0]], "labels": [0, 1]}
            names = ["zero", "$o_{ne$"]
            measured = {"kinds": kinds, "real": real, "share": [0.4, 0.2], "class_names": names}
            return {"measured": measured}

        return _tabulate(config, fill)

    def test_numbers_say_how_far_outside_images_lie(self):
        found = {(row, column): mean for (_, row, column), mean in _means(self._result()).items()}
        assert found["distilled", "distance / 95 % radius"] == pytest.approx(1.65)
        assert found["distilled", "outside the radius"] == 1
        assert found["random real", "outside the radius"] == 0.5
        assert found["typical real", "outside the radius"] == 0
        assert found["distilled", "beyond the edge along class"] == 0.25

    def test_claims_are_of_most_images(self):
        assert [claim.holds for claim in self._result().claims] == [True, False]

    def test_figure_names_the_classes(self, tmp_path):
        assert len(_write(tmp_path, self._result())) == 4
        drawn = (tmp_path / "figure.svg").read_text()
        assert ">zero<" in drawn
        assert ">$o_{ne$<" in drawn


class TestClassMeans:
    def _result(self) -> result.Result:
        config = _config_of("class_means").get_config("embedded")
        # Folders, which are known by their names.
        config.experiment.update(backbones="here/a,there/b", head_stds="0.01,0.1,1")

        def fill(each: Any) -> dict[str, Any]:
            worse = 0.1 if each.axes["backbone"] == "b" else 0.0
            found = {
                "0.01": {"cosine": [1.0, 1.0], "share": [1.0, 0.99]},
                "0.1": {"cosine": [0.9, 0.8], "share": [0.8, 0.6]},
                "1": {"cosine": [0.5, 0.7], "share": [0.5 - worse, 0.5]},
            }
            return {
                "measured": {
                    scale: {
                        **values,
                        "overall": [0.1],
                        "rest": values["share"],
                        "scores": [3 * float(scale)],
                    }
                    for scale, values in found.items()
                }
            }

        return _tabulate(config, fill)

    def test_rows_are_head_scales(self):
        found = self._result()
        rows = _means(found)
        share = "digits: share of the head gradient that class means explain"
        cosine = "digits: cosine of the head gradient and the one that knows class means alone"
        assert rows[share, "0.1", "a"] == pytest.approx(0.7)
        assert rows[cosine, "1", "b"] == pytest.approx(0.6)
        assert rows[share, "1", "b"] == pytest.approx(0.45)
        assert rows["digits: std of the class scores", "0.1", "a"] == pytest.approx(0.3)
        assert [claim.holds for claim in found.claims] == [True] * 4
        assert "± std over 2 random heads" in result.to_markdown(found)

    def test_figure_is_drawn(self, tmp_path):
        assert len(_write(tmp_path, self._result())) == 4


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:3]] + [*NAMES[3:]]
)
@pytest.mark.slow
def test_quick_runs_from_end_to_end_and_repeats_nothing(name, tmp_path, capsys):
    command = ["launch.py", f"--config=configs/experiments/{name}.py:quick"]
    command += [f"--workdir={tmp_path / name}"]
    if name == "table6":
        # Two of the three tell all that a third does.
        command.append("--config.experiment.backbones=digits_contrastive,digits_distilled")
    assert launch.main(command) == 0
    written = ("table.md", "table.csv", "figure.png", "figure.svg")
    content = {file: (tmp_path / name / file).read_bytes() for file in written}
    records = sorted((tmp_path / name / "runs").glob("*/stages.json"))
    before = [record.read_text() for record in records]
    assert records
    assert launch.main(command) == 0
    assert [record.read_text() for record in records] == before
    assert {file: (tmp_path / name / file).read_bytes() for file in written} == content
