"""What a run records: enough to make it again, nothing that a later version makes strange."""

import dataclasses
import json
import re
import shlex
import shutil
from typing import Any

import numpy as np
import pytest

import lgm_jax
from configs import common, imagenette_folder, quickstart
from lgm_jax import (
    augment,
    distill,
    features,
    images,
    objectives,
    probe,
    runs,
    settings,
    share,
)
from lgm_jax import session as session_module
from lgm_jax.report import __main__ as report
from tests.launching import QUICK, opened, start

DISTIL = "--config.stages=distill"


def record_of(workdir):
    return json.loads((workdir / "config.json").read_text())


def as_flags(settings):
    """Recorded settings as they are typed; what is unset is left out."""
    return [f"--config.{key}={value}" for key, value in settings.items() if value is not None]


@pytest.fixture(scope="module")
def odd(tmp_path_factory, write_vit):
    """A folder, and flags of a run in it that are everything that a record may get wrong."""
    base = tmp_path_factory.mktemp("odd")
    photos = base / "my, photos" / "of a=b" / "1,000 digits.npz"
    photos.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (40, 32, 32, 3), np.uint8), np.arange(40) % 2
    np.savez(photos, images=images, labels=labels)
    own = [
        write_vit(base / "own" / name, seed=seed) for seed, name in enumerate(("weights", "others"))
    ]
    arguments = [
        *("--config=configs/common.py", DISTIL, "--config.data.name=npz"),
        *(f"--config.data.folder={photos}", f"--config.backbone.name={own[0]},{own[1]}"),
        *("--config.backbone.weights=2,1.5", "--config.steps=3", "--config.copies=2"),
        *("--config.learning_rate=0.0123456789012345678", "--config.head_std=1e-05"),
        *("--config.images.resolution=16", "--config.images.crop=16"),
        *("--config.images.start_resolution=8", "--config.images.grey=True"),
        *("--config.augment.flip=0", "--config.augment.scale_min=0.30000000000000004"),
        *("--config.data.val_fraction=0.25", "--config.seed=7"),
    ]
    return base, arguments


@pytest.fixture(scope="module")
def odd_run(odd):
    """The run of these flags."""
    base, arguments = odd
    assert start(*arguments, workdir=base / "run of 1,2") == 0
    return base / "run of 1,2"


def assert_same_run(one, other):
    assert record_of(one)["identity"] == record_of(other)["identity"]
    images = [lgm_jax.load_distilled(folder)[0] for folder in (one, other)]
    np.testing.assert_array_equal(*images)


@pytest.mark.slow
def test_recorded_settings_make_the_same_run_again(odd_run, tmp_path):
    record = record_of(odd_run)
    flags = as_flags(record["config"])
    assert start("--config=configs/common.py", *flags, workdir=tmp_path / "flags") == 0
    assert_same_run(odd_run, tmp_path / "flags")
    # What is recorded of that run is what it was recorded from.
    assert record_of(tmp_path / "flags")["config"] == record["config"]
    config = common.get_config()
    config.update_from_flattened_dict(record["config"])
    assert common.flatten(config) == record["config"]


def test_recorded_settings_open_the_same_run_again(odd, tmp_path):
    """Without a step of it, which other tests make."""
    _, arguments = odd
    first = opened(tmp_path / "typed", *arguments)
    record = record_of(tmp_path / "typed")
    flags = ("--config=configs/common.py", *as_flags(record["config"]))
    again = opened(tmp_path / "recorded", *flags)
    assert again.identity == first.identity == record["identity"]
    assert record_of(tmp_path / "recorded")["config"] == record["config"]


def test_stages_of_an_earlier_start_stay_recorded(run_copy):
    assert record_of(run_copy)["config"]["stages"] == "distill,probe,baselines,report"
    assert start(QUICK, "--config.stages=report", workdir=run_copy) == 0
    assert record_of(run_copy)["config"]["stages"] == "distill,probe,baselines,report"


@pytest.mark.slow
def test_the_recorded_command_makes_the_same_run_again(odd_run, tmp_path):
    python, program, *words = shlex.split(record_of(odd_run)["command"])
    assert (python, program) == ("python", "launch.py")
    arguments = [word for word in words if not word.startswith("--workdir=")]
    assert start(*arguments, DISTIL, workdir=tmp_path / "again") == 0
    assert_same_run(odd_run, tmp_path / "again")


@pytest.mark.slow
def test_a_page_and_a_card_show_no_way_to_a_folder(odd_run, tmp_path):
    base = str(odd_run.parent)
    shutil.copytree(odd_run, tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert base in json.dumps(record["config"])
    assert base in record["command"]
    assert report.main([str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1,000 digits.npz" in page
    assert "weights,others" in page
    assert base not in page
    results = {"steps": 3, "dataset": "npz", "probe": {}, "backbones": ["weights"]}
    results |= {"ipc": 1, "num_classes": 2, "objective": "lgm"}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    card = share.write_card(share.read_run(tmp_path / "run"), "me/set")
    assert '"learning_rate": 0.012345678901234568' in card
    assert '"data.folder": "1,000 digits.npz"' in card
    assert base not in card


def test_names_stay_whole_and_folders_lose_their_way():
    from lgm_jax import public

    values = {
        "data.name": "tfds:a/b",
        "backbone.name": "facebook/dinov2-base,timm/vit_a,/home/me/w,../x/y,~/z,digits_masked",
        "eval_backbones": "weights/mine,https://huggingface.co/timm/vit_a/tree/main,hf-hub:a/b",
        "data.folder": "/home/me/a,/b c",
        "images.source": "gs://bucket/run",
        "augment.flip": None,
        "steps": 3,
        "images.grey": True,
    }
    assert public.settings(values) == values | {
        "backbone.name": "facebook/dinov2-base,timm/vit_a,w,y,z,digits_masked",
        "eval_backbones": "weights/mine,timm/vit_a,a/b",
        "data.folder": "b c",
        "images.source": "run",
    }
    assert public.value("config", "/home/me, too/c.py:quick") == "c.py:quick"
    typed = "python launch.py --config /home/me/c.py:quick --config.eval_backbones=/a/b,x/y"
    typed += " --workdir=runs/w --config.real.cache=gs://bucket/c '--config.data.folder=~/p, q'"
    shown = "python launch.py --config c.py:quick --config.eval_backbones=b,x/y"
    shown += " --workdir=runs/w --config.real.cache=c '--config.data.folder=p, q'"
    assert public.command(typed) == public.command(shown) == shown


def wider(base, **extra):
    """A dataclass as a later version may have it: of the same name, with another field."""
    fields = [(name, Any, dataclasses.field(default=value)) for name, value in extra.items()]
    later = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True)
    later.__module__ = base.__module__
    return later


def test_a_later_field_or_key_makes_no_run_a_stranger(run_copy, capsys, monkeypatch):
    identity = record_of(run_copy)["identity"]
    before = json.loads((run_copy / "stages.json").read_text())
    Augmentation = wider(augment.Augmentation, rotation=0.0)
    paper = augment.PRESETS["digits"]
    monkeypatch.setitem(augment.PRESETS, "digits", Augmentation(flip=paper.flip, scale=paper.scale))
    monkeypatch.setattr(distill, "Distillation", wider(distill.Distillation, sharpness=0.5))
    for known, name in ((objectives.OBJECTIVES, "lgm"), (images.PARAMETRISATIONS, "pyramid")):
        monkeypatch.setitem(known, name, wider(known[name], softness=0.5))
    monkeypatch.setattr(settings, "Updates", wider(settings.Updates, momentum=0.5))
    monkeypatch.setattr(settings, "RealViews", wider(settings.RealViews, sharpness=0.5))
    monkeypatch.setattr(probe, "Protocol", wider(probe.Protocol, momentum=0.9))
    monkeypatch.setattr(session_module, "Views", wider(features.Views, rotations=1))
    keys = {"images.sheen": common.Key(0.25, "later"), "sheen": common.Key("", "later")}
    monkeypatch.setattr(common, "KEYS", {**common.KEYS, **keys})
    capsys.readouterr()
    assert start(QUICK, workdir=run_copy) == 0
    out = capsys.readouterr().out
    assert "6 steps are done" in out
    assert "distilled: done" in out
    assert "random real: done" in out
    assert record_of(run_copy)["identity"] == identity
    after = json.loads((run_copy / "stages.json").read_text())
    assert [after[n]["inputs"] for n in before if n != "report"] == [
        before[n]["inputs"] for n in before if n != "report"
    ]


def test_a_later_field_that_is_used_is_another_run(run_copy, capsys, monkeypatch):
    monkeypatch.setattr(distill, "Distillation", wider(distill.Distillation, sharpness=0.5))
    make = settings.make_recipe

    def make_sharper(*given):
        recipe = make(*given)
        task = dataclasses.replace(recipe.task, sharpness=0.75)
        return dataclasses.replace(recipe, task=task)

    monkeypatch.setattr(settings, "make_recipe", make_sharper)
    assert start(QUICK, workdir=run_copy) == 2
    assert "sharpness is unset there, not 0.75" in capsys.readouterr().err


@pytest.mark.parametrize("version", [None, 2])
@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_shown_and_not_gone_on_with(version, run_copy, capsys):
    record, stages = record_of(run_copy), json.loads((run_copy / "stages.json").read_text())
    before = lgm_jax.load_distilled(run_copy)
    # As 0.1.0 and its successors wrote it, in part: another identity, and no version at first.
    record["identity"] = {"seed": 0, "images.grow_every": 2, "data.name": "digits"}
    del record["version"]
    if version is not None:
        record["version"] = version
    results = json.loads((run_copy / "results.json").read_text())
    del results["about_objective"]
    (run_copy / "results.json").write_text(json.dumps(results))
    stages["distill"]["inputs"] = {**record["identity"], "steps": 6}
    for stage in stages.values():
        for made in stage["made_by"]:
            made["versions"]["lgm_jax"] = "0.1.0"
    (run_copy / "config.json").write_text(json.dumps(record))
    (run_copy / "stages.json").write_text(json.dumps(stages))
    capsys.readouterr()
    assert start(QUICK, workdir=run_copy) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"error: workdir [^\n]* holds a run of lgm_jax 0\.1\.0, which [^\n]+\n", line
    )
    assert "name another workdir" in line
    assert "--overwrite" in line
    assert report.main([str(run_copy)]) == 0
    page = (run_copy / "report.html").read_text()
    assert page.count('class="card"') == 10
    assert f"{results['probe']['digits_contrastive']['distilled']['top1_mean']:.1f}" in page
    assert share.TERMS["digits"].note in share.write_card(share.read_run(run_copy), "me/set")
    for old, new in zip(before, lgm_jax.load_distilled(run_copy), strict=True):
        np.testing.assert_array_equal(old, new)
    source = (f"--config.images.source={run_copy}", "--config.stages=probe")
    assert start(QUICK, *source, workdir=run_copy.parent / "evaluated") == 0
    assert start(QUICK, DISTIL, "--config.steps=2", "--overwrite", workdir=run_copy) == 0
    assert record_of(run_copy)["version"] == runs.VERSION


def pyramid_of(config, crop):
    return settings.make_recipe(config, 10, crop).task.parametrisation


@pytest.mark.parametrize(
    ("config", "crop", "steps", "expected"),
    [
        (common.get_config(), 224, None, 200),
        (common.get_config(), 224, 5001, 200),
        (common.get_config(), 224, 1000, 40),
        (common.get_config(), 224, 6, 0),
        (common.get_config(), 224, 9, 1),
        (common.get_config(), 224, 0, 0),
        (quickstart.get_config(), 32, None, 100),
        (quickstart.get_config(), 32, 150, 19),
        (quickstart.get_config(), 32, 4, 1),
        (imagenette_folder.get_config(), 224, None, 15),
        (imagenette_folder.get_config(), 224, 150, 6),
        (imagenette_folder.get_config("accurate"), 224, None, 10),
    ],
)
def test_growth_follows_the_steps(config, crop, steps, expected):
    config = config.copy_and_resolve_references()
    config.steps = config.steps if steps is None else steps
    pyramid = pyramid_of(config, crop)
    assert pyramid.grow_every == expected
    # The last update sees every level.
    if config.steps:
        assert pyramid.side_at(config.steps - 1) == pyramid.resolution
    config.images.grow_every = 33
    assert pyramid_of(config, crop).grow_every == 33


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("start_resolution", [1, 4, 300])
def test_every_number_of_steps_finishes_the_pyramid(start_resolution, delay):
    config = common.get_config()
    config.images.update(start_resolution=start_resolution, grow_delay=delay)
    for until in (0.001, 0.32, 1.0):
        config.images.grow_until = until
        for steps in (*range(1, 60), 997):
            config.steps = steps
            pyramid = pyramid_of(config, 224)
            assert pyramid.side_at(steps - 1) == pyramid.resolution, (until, steps)


def test_more_steps_keep_the_growth_that_a_run_began_with(longer_run, tmp_path, capsys):
    shutil.copytree(longer_run, tmp_path / "run")
    began = record_of(tmp_path / "run")
    assert began["config"]["images.grow_every"] == began["identity"]["images.grow_every"] == 1
    capsys.readouterr()
    more = ("--config.steps=16", DISTIL, "--config.log_every=10")
    assert start(QUICK, *more, workdir=tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "continues with images.grow_every=1, as it began" in out
    assert "would make it 2" in out
    assert "steps 8 to 16" in out
    assert "note: the images stay" not in out
    went_on = record_of(tmp_path / "run")
    assert went_on["identity"] == began["identity"]
    assert went_on["config"]["images.grow_every"] == 1
    command = shlex.split(went_on["command"])
    assert command[-1] == "--config.images.grow_every=1"
    # The recorded settings make the images that took two starts.
    flags = as_flags(went_on["config"])
    assert start("--config=configs/common.py", *flags, workdir=tmp_path / "again") == 0
    assert_same_run(tmp_path / "run", tmp_path / "again")
    assert start(QUICK, *more, "--config.images.grow_every=5", workdir=tmp_path / "run") == 2
    assert "images.grow_every is 1 there, not 5" in capsys.readouterr().err


def test_a_pyramid_that_stays_unfinished_is_said_to(tmp_path, capsys):
    arguments = (QUICK, DISTIL, "--config.steps=3", "--config.images.grow_every=1")
    assert start(*arguments, workdir=tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "note: the images stay at 16 of 32 px" in out
    assert "config.images.grow_every=1, config.steps=3 is too few for 6 levels" in out


@pytest.mark.slow
def test_results_on_other_backbones_stay_while_their_inputs_hold(run_copy, capsys):
    """As of experiments that share runs."""

    def evaluate(*arguments):
        capsys.readouterr()
        assert start(QUICK, "--config.baselines=random", *arguments, workdir=run_copy) == 0
        return json.loads((run_copy / "results.json").read_text())["probe"]

    own, other = "digits_contrastive", "digits_distilled"
    before = json.loads((run_copy / "results.json").read_text())["probe"]
    found = evaluate(f"--config.eval_backbones={other}")
    assert list(found) == [other, own]
    assert set(found[other]) == {"distilled", "random"}
    assert found[own] == before[own]
    again = evaluate()
    assert list(again) == [own, other]
    assert again == found
    printed = capsys.readouterr().out
    assert "distilled: done" in printed
    assert re.search(rf"top-1 % on test.*{own}.*{other}", printed)
    assert other in (run_copy / "report.html").read_text()
    # Those of another protocol are of another evaluation.
    assert list(evaluate("--config.probe.ridge=0.02")) == [own]
