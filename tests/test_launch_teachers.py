"""Runs whose probes learn from the head on all real images, too."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from etils import epath

from lgm_jax import probe
from lgm_jax.stages import probing
from lgm_jax.teachers import TARGETS
from tests.launching import QUICK, opened, refuse, start

OTHER = "digits_distilled"
TAUGHT = (
    *(QUICK, "--config.probe.solver=adam", "--config.probe.teacher=ci,kd"),
    *("--config.baselines=full,random", f"--config.eval_backbones=digits_contrastive,{OTHER}"),
    *(
        "--config.probe.learning_rate=0.05",
        "--config.probe.epochs=40",
        "--config.data.subset=0,1,2",
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, and what it printed."""
    workdir = tmp_path_factory.mktemp("taught") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *what, **_: lines.append(" ".join(map(str, what))))
        assert start(*TAUGHT, workdir=workdir) == 0
    return workdir, "\n".join(lines)


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "copy")


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def stages(workdir):
    return json.loads((workdir / "stages.json").read_text())


@pytest.mark.slow
def test_probes_with_a_teacher_stand_apart(made):
    found = results(made[0])
    assert list(found["probe"]) == ["digits_contrastive", OTHER]
    for entries in found["probe"].values():
        assert set(entries) == {"distilled", "random", "full"}
        assert not any("teacher" in entry for entry in entries.values())
    assert list(found["taught"]) == ["kd", "ci"]
    for targets, probes in found["taught"].items():
        assert list(probes) == ["digits_contrastive", OTHER]
        for entries in probes.values():
            assert set(entries) == {"distilled", "random"}
            for entry in entries.values():
                assert (entry["targets"], entry["teacher"]) == (targets, "digits_contrastive")
                assert len(entry["top1_runs"]) == 2
                assert entry["loss_curve"][-1][1] < entry["loss_curve"][0][1]


@pytest.mark.slow
def test_the_terminal_says_what_they_know(made):
    _, printed = made
    for text in (
        "knowledge distillation (kd) from the head on all real images of digits_contrastive:",
        "classifier inheritance (ci) from the head on all real images of digits_contrastive:",
    ):
        assert text in printed
    assert printed.count("top-1 % on test") == 3


@pytest.mark.slow
def test_the_page_says_so_too(made, reported):
    page = (made[0] / "report.html").read_text()
    title = "Knowledge distillation (kd) from the head on all real images of digits_contrastive"
    assert page.count(f"<caption>{title}: accuracy in percent</caption>") == 1
    (table,) = re.findall(rf"<caption>{re.escape(title)}.*?</table>", page, re.DOTALL)
    found = results(made[0])["taught"]["kd"]
    for backbone in ("digits_contrastive", OTHER):
        assert f'<th scope="col">{backbone}</th>' in table
        mean = found[backbone]["distilled"]["top1_mean"]
        assert f"<td>{mean:.1f}" in table
    assert "With a teacher" not in (reported / "report.html").read_text()


@pytest.mark.slow
def test_the_head_of_the_teacher_is_trained_once_and_is_that_of_the_row(made, copy):
    workdir, printed = made
    trained = [line for line in printed.splitlines() if line.startswith("all real: ")]
    assert [line.split(" on ")[-1] for line in trained] == ["digits_contrastive", OTHER]
    session = opened(copy, *TAUGHT)
    (path,) = (workdir / "features").glob("heads_digits_contrastive_*.npz")
    with np.load(path) as arrays:
        heads = {name: arrays[name] for name in ("kernel", "bias")}
    test = session.dataset.splits["test"]
    scores = probe.evaluate(heads, session.features(session.backbone, "test"), test.labels)
    expected = results(workdir)["probe"]["digits_contrastive"]["full"]["top1_runs"]
    np.testing.assert_allclose(scores["top1"], expected, rtol=1e-6)
    session.run.close()


@pytest.mark.slow
def test_a_finished_run_trains_nothing_again(copy, capsys):
    before = stages(copy)
    # The stage of the head is named, but finished.
    assert start(*TAUGHT, workdir=copy) == 0
    printed = capsys.readouterr().out
    for row in (
        "distilled: done",
        "distilled, kd: done",
        "random real, ci: done",
        "all real: done",
    ):
        assert row in printed
    assert stages(copy) == before
    # Without a teacher, as without a backbone, what is known stays.
    session = opened(copy, *TAUGHT, "--config.probe.teacher=", "--config.eval_backbones=")
    session.run.close()
    assert probing.collect_taught(session) == results(copy)["taught"]
    assert probing.collect_results(session) == results(copy)["probe"]
    # Of another protocol, it does not; nor of a solver that nobody teaches.
    for other, rows in (("epochs=41", {"full"}), ("solver=lbfgs", set())):
        session = opened(copy, *TAUGHT, "--config.probe.teacher=", f"--config.probe.{other}")
        session.run.close()
        assert probing.collect_taught(session) == {}
        found = probing.collect_results(session)
        assert {name: set(entries) for name, entries in found.items()} == (
            dict.fromkeys(("digits_contrastive", OTHER), rows) if rows else {}
        )


@pytest.mark.slow
def test_what_depends_on_the_teacher_is_made_again(copy):
    def inputs(*more):
        session = opened(copy, *TAUGHT, *more)
        session.run.close()
        backbone = session.eval_backbones[1]
        rows = {name: probing.Row(session, "distilled", name) for name in TARGETS}
        return {name: row.inputs(backbone.fingerprint) for name, row in rows.items()}

    plain, changed = inputs(), inputs("--config.probe.full_epochs=2")
    assert changed["labels"] == plain["labels"]
    assert changed["kd"] != plain["kd"]
    assert changed["ci"] != plain["ci"]
    assert plain["kd"]["protocol"]["learning_rate"] == 0.05
    assert plain["ci"]["protocol"]["learning_rate"] == 0.5


def test_kept_heads_are_trained_when_missing_or_damaged(tmp_path, capsys):
    path, asked = epath.Path(tmp_path / "new" / "heads.npz"), []

    def kept():
        """The number of the training that the heads are of."""
        trained = probing.kept_heads(path, train)
        np.testing.assert_array_equal(trained.losses, np.ones((1, 4)))
        return int(trained.heads["kernel"].max())

    def train():
        asked.append(1)
        heads = {"kernel": np.full((1, 2, 3), len(asked)), "bias": np.zeros((1, 3))}
        return probe.Trained(heads, np.ones((1, 4)))

    assert [kept(), kept(), len(asked)] == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:-40])
    assert [kept(), kept(), len(asked)] == [2, 2, 2]
    assert capsys.readouterr().out == f"note: {path} is damaged; its heads are trained again\n"
    assert [each.name for each in path.parent.iterdir()] == ["heads.npz"]
    path.unlink()
    without = probing.kept_heads(path, lambda: train()._replace(losses=None))
    assert without.losses is None
    assert probing.kept_heads(path, train).losses is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--config.probe.solver=lbfgs"], "needs --config.probe.solver=adam"),
        (["--config.baselines=random"], "full to config.baselines"),
        (["--config.stages=distill,probe,report"], "add baselines to config.stages"),
        ([f"--config.eval_backbones={OTHER}"], "add it to config.eval_backbones"),
        (["--config.probe.teacher=cl"], "config.probe.teacher"),
    ],
)
def test_what_cannot_be_taught_is_refused_before_anything_is_made(changes, text, tmp_path, capsys):
    assert text in refuse(capsys, *TAUGHT, *changes, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_distillation_alone_needs_no_teacher(tmp_path):
    session = opened(
        tmp_path / "run", *TAUGHT, "--config.stages=distill", "--config.baselines=random"
    )
    session.run.close()
