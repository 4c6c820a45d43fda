"""Backbones of one name in a run: told apart in results, or refused where they are one."""

import json
import shutil

import numpy as np
import pytest

from lgm_jax import solvers
from lgm_jax.stages import probing
from tests.launching import ROOT, opened, refuse, start

QUICK = (f"--config={ROOT / 'configs' / 'quickstart.py'}:quick", "--config.images.crop=16")
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALL = ("--config.images.resolution=16", "--config.steps=2", "--config.baselines=random")


@pytest.fixture(scope="module")
def alike(tmp_path_factory, vit_folder):
    """Two folders of one name and equal weights, whose images are normalised in two ways."""
    root = tmp_path_factory.mktemp("alike")
    for owner, mean, std in (("here", _MEAN, _STD), ("there", [0.5] * 3, [0.5] * 3)):
        folder = shutil.copytree(vit_folder, root / owner / "tiny")
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"] |= {"mean": mean, "std": std}
        (folder / "config.json").write_text(json.dumps(config))
    return root


def test_two_evaluation_backbones_of_one_name_have_entries_each(alike, tmp_path, monkeypatch):
    """By heads that name one class, another of each backbone: without a probe that is trained."""
    folders = [alike / owner / "tiny" for owner in ("here", "there")]
    both = ",".join(map(str, folders))
    flags = (f"--config.backbone.name={folders[0]}", f"--config.eval_backbones={both}")
    session = opened(tmp_path / "run", *QUICK, *SMALL, *flags)
    names = ["tiny (normalization=imagenet)", "tiny (normalization=half)"]
    assert list(map(session.name_of, session.eval_backbones)) == names
    labels = session.dataset.splits[session.config.probe.split].labels

    def heads(row, backbone):
        named = session.eval_backbones.index(backbone)
        bias = np.eye(10, dtype=np.float32)[[named]]
        return solvers.Trained({"kernel": np.zeros((1, 3, 10), np.float32), "bias": bias}, None)

    monkeypatch.setattr(probing.Row, "heads", heads)
    features = np.zeros((len(labels), 3), np.float32)
    monkeypatch.setattr(type(session), "features", lambda *_: features)
    probing.baselines_stage(session)
    found = probing.collect_results(session)
    assert list(found) == names
    for number, name in enumerate(names):
        expected = 100 * np.mean(labels == number)
        assert found[name]["random"]["top1_mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_two_evaluation_backbones_of_one_name_have_a_result_each(alike, tmp_path, capsys):
    both = f"{alike / 'here' / 'tiny'},{alike / 'there' / 'tiny'}"
    flags = (f"--config.backbone.name={alike / 'here' / 'tiny'}", f"--config.eval_backbones={both}")
    assert start(*QUICK, *SMALL, *flags, f"--workdir={tmp_path / 'run'}") == 0
    probe = json.loads((tmp_path / "run" / "results.json").read_text())["probe"]
    assert list(probe) == ["tiny (normalization=imagenet)", "tiny (normalization=half)"]
    first, second = (entries["random"]["top1_runs"] for entries in probe.values())
    assert not np.allclose(first, second)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["backbones"] == ["tiny (normalization=imagenet)"]
    # Nothing is trained again.
    capsys.readouterr()
    assert start(*QUICK, *SMALL, *flags, f"--workdir={tmp_path / 'run'}") == 0
    assert "distilled: done" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["backbone.name", "eval_backbones"])
def test_one_backbone_named_twice_is_refused(alike, tmp_path, capsys, key):
    folder = alike / "here" / "tiny"
    work = f"--workdir={tmp_path / 'run'}"
    assert "twice" in refuse(capsys, *QUICK, *SMALL, f"--config.{key}={folder},{folder}", work)
    other = alike / "there" / ".." / "here" / "tiny"
    said = refuse(capsys, *QUICK, *SMALL, f"--config.{key}={folder},{other}", work)
    assert "same backbone" in said
    assert not (tmp_path / "run").exists()
