"""Experiments: what is planned, and what is refused before the first run."""

import re
import sys

import pytest

import launch
from configs import common
from configs.experiments import _base
from lgm_jax import baselines, experiments, plan
from lgm_jax.errors import UserError
from lgm_jax.experiments import result, runner
from lgm_jax.settings import split_list
from tests.experimenting import GIVEN, PATHS, ROOT, flat_score, load, tabulate

SCALES = ("", ":embedded", ":quick", ":imagenette")


# Those whose results come of accuracies alone.
OWN = ("table1", "table2", "table3", "table5", "figure3", "ipc", "sizes", "objectives", "clp")


LACKING = {
    *(("sizes", ":embedded"), ("sizes", ":quick"), ("table5", ":imagenette")),
    *(("verify_gpu", ":embedded"), ("verify_gpu", ":imagenette")),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_experiment_is_planned_checked_and_tabulated(path, scale):
    flags = [GIVEN] if scale == ":imagenette" else []
    if (path.stem, scale) in LACKING:
        with pytest.raises(UserError, match="is not for"):
            load(path.stem, scale)
        return
    config = load(path.stem, scale, *flags)
    planned = experiments.planned_configs(config)
    assert planned
    for each in planned.values():
        common.check(each)
    if path.stem in OWN:
        found = tabulate(config, flat_score)
        assert result.to_markdown(found).startswith(f"# {found.title}\n")
        assert found.tables
        assert all(table.cells for table in found.tables)


def test_every_experiment_has_a_config_and_a_line_in_the_documentation():
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert {path.stem for path in PATHS} == set(experiments.SWEEPS)
    for path in PATHS:
        assert f"`{path.stem}`" in page
        assert f"--config=configs/experiments/{path.name}" in path.read_text()


def test_backbones_of_folders_are_found_by_their_names():
    found = tabulate(load("table2", ":imagenette", GIVEN), flat_score)
    assert found.tables[0].cells["first", "second"].mean == 70
    names = list(experiments.planned_configs(load("table2", ":imagenette", GIVEN)))
    seeds = [f"given_{name}_seed{seed}" for name in ("first", "second") for seed in range(3)]
    assert names == ["given_real", *seeds]
    # The key of the images is no name for a person.
    run = runner.Planned({"set": "given", "backbone": "here/first", "seed": 0}, {})
    assert (run.title, run.name) == ("first seed 0", "given_first_seed0")


def test_two_folders_of_one_name_are_refused():
    flag = "--config.experiment.backbones=here/vit,there/vit"
    with pytest.raises(UserError, match="rename"):
        experiments.planned_configs(load("table1", ":imagenette", flag))


def test_experiment_without_backbones_says_what_to_set():
    with pytest.raises(UserError, match=r"--config\.experiment\.backbones=FOLDER"):
        experiments.planned_configs(load("table1", ":imagenette"))


def test_ablations_change_what_they_say_and_keep_the_probe():
    configs = experiments.planned_configs(load("table3"))
    full = common.flatten(configs["imagenet-100_clip_vitb16_seed0"])
    every = common.flatten(configs["imagenet-100_clip_vitb16_no-decorrelate-pyramid-augment_seed0"])
    assert {name for name in full if full[name] != every[name]} == {
        *("images.decorrelate", "images.kind", "augment.distill"),
    }


@pytest.mark.parametrize("value", ["", "0", "1,x"])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(UserError, match="whole numbers"):
        experiments.planned_configs(load("ipc", "", f"--config.experiment.ipc={value}"))


def test_same_runs_have_the_same_name_and_config_in_tables_1_and_2():
    one, two = (experiments.planned_configs(load(name)) for name in ("table1", "table2"))
    name = "imagenet-1k_eva02_vitb14_seed0"
    changed = {
        key
        for key, value in common.flatten(one[name]).items()
        if common.flatten(two[name])[key] != value
    }
    # None of which makes another distillation.
    assert changed == {"eval_backbones", "stages", "baselines"}
    assert (one[name].copies, one["imagenet-100_eva02_vitb14_seed0"].copies) == (3, 10)


def test_embedded_backbones_are_those_of_the_package():
    names = _base.EMBEDDED_BACKBONES
    assert names == ["digits_contrastive", "digits_distilled", "digits_masked"]
    assert split_list(load("table1", ":embedded").experiment.backbones) == names


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--config=configs/quickstart.py", "--config.experiment.seeds=2"), "experiment.seeds"),
        (("--config=configs/experiments/table1.py", "--config.experiment.x=2"), "experiment.x"),
        (("--config=configs/experiments/table1.py", "--config.experiment.sets=x"), "unknown set"),
        (("--config=configs/experiments/table1.py", "--config.experiment.seeds=0"), "at least 1"),
        (("--config=configs/experiments/table1.py", "--config.experiment.name=x"), "table1"),
        (("--config=configs/experiments/table3.py", "--config.experiment.without=x"), "pyramid"),
        (("--config=configs/experiments/table1.py", "--config.experiment.folders=x"), "one each"),
        (("--config=configs/experiments/table1.py", "--config.baselines=x"), "centroids"),
        (("--config=configs/experiments/clp.py", "--config.experiment.ridges=x"), "0.1,1"),
    ],
)
def test_bad_input_is_refused_with_one_line(flags, words, capsys, tmp_path):
    assert launch.main(["launch.py", *flags, f"--workdir={tmp_path / 'w'}"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err), captured.err
    assert words in captured.err
    assert not (tmp_path / "w").exists()


def test_without_pandas_one_line_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pandas", None)
    config = f"--config={ROOT}/configs/experiments/table1.py:quick"
    assert launch.main(["launch.py", config, f"--workdir={tmp_path / 'w'}"]) == 2
    assert capsys.readouterr().err == (
        "error: experiments need pandas: pip install 'lgm_jax[experiments]', and start again\n"
    )
    assert not (tmp_path / "w").exists()


def test_plan_of_an_experiment_is_that_of_its_runs(capsys, monkeypatch):
    monkeypatch.setattr(plan, "describe", lambda config, **_: f"{config.copies} copies")
    path = ROOT / "configs" / "experiments" / "figure3.py"
    assert launch.main(["launch.py", f"--config={path}:quick", "--plan"]) == 0
    name = "digits_digits_contrastive"
    printed = capsys.readouterr().out
    # The recipe's own number is the run of other experiments.
    assert printed == f"{name}_seed0\n1 copies\n\n{name}_copies2_seed0\n2 copies\n\n"
    # Seeds have one plan, and real images none.
    flags = [f"--config={path.with_stem('table1')}:quick", "--config.experiment.seeds=2"]
    flags += [f"--config.experiment.backbones={name.removeprefix('digits_')}", "--plan"]
    assert launch.main(["launch.py", *flags]) == 0
    runs = ", ".join(f"{name}_seed{seed}" for seed in range(2))
    said = f"digits_real\ndistils nothing\n\n2 runs: {runs}\n1 copies\n\n"
    assert capsys.readouterr().out == said


def test_rows_of_real_images_are_chosen_by_name():
    assert split_list(common.get_config().baselines) == list(baselines.METHODS)
