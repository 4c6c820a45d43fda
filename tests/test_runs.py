"""The run folder's record of what was made, from what and by whom."""

import json

import pytest
from etils import epath

from lgm_jax import runs
from lgm_jax.errors import UserError
from tests.run_folders import EMPTY

IDENTITY = {"seed": 0, "scale": (0.1, 1.0)}


@pytest.fixture
def run(tmp_path):
    """An open run folder."""
    run = runs.check_run(str(tmp_path / "run"), IDENTITY, overwrite=False)
    run.open(IDENTITY, {"config": {}})
    yield run
    run.close()


def test_checking_a_folder_changes_nothing(tmp_path, run):
    before = (run.path / runs.CONFIG).read_bytes()
    assert runs.check_run(str(tmp_path / "new"), IDENTITY, overwrite=True).holds == "nothing"
    assert not (tmp_path / "new").exists()
    assert runs.check_run(str(run.path), IDENTITY, overwrite=True).holds == "this"
    other = {**IDENTITY, "seed": 1}
    assert runs.check_run(str(run.path), other, overwrite=True).holds == "another"
    with pytest.raises(UserError, match="seed is 0 there, not 1"):
        runs.check_run(str(run.path), other, overwrite=False)
    assert (run.path / runs.CONFIG).read_bytes() == before


def test_folder_is_one_process_s_at_a_time(run):
    second = runs.check_run(str(run.path), IDENTITY, overwrite=False)
    with pytest.raises(UserError, match="another process is using"):
        second.open(IDENTITY, {})
    other = {"seed": 1}
    third = runs.check_run(str(run.path), other, overwrite=True)
    run.close()
    fourth = runs.check_run(str(run.path), {"seed": 2}, overwrite=True)
    third.open(other, {})
    third.close()
    with pytest.raises(UserError, match="another process has just used"):
        fourth.open({"seed": 2}, {})
    assert json.loads((run.path / runs.CONFIG).read_text())["identity"] == other


def test_opening_throws_away_another_distillation_only(run):
    (run.path / runs.METRICS).write_text("old")
    (run.path / "notes.txt").write_text("mine")
    run.close()
    same = runs.check_run(str(run.path), IDENTITY, overwrite=True)
    same.open(IDENTITY, {})
    same.close()
    assert (run.path / runs.METRICS).read_text() == "old"
    other = {"seed": 1}
    runs.check_run(str(run.path), other, overwrite=True).open(other, {})
    assert not (run.path / runs.METRICS).exists()
    assert (run.path / "notes.txt").read_text() == "mine"
    assert json.loads((run.path / runs.CONFIG).read_text())["identity"] == other


@pytest.mark.parametrize("config", ["{}", '{"architecture": "vit"}', '{"identity": 3}'])
def test_a_config_of_another_program_is_not_overwritten(tmp_path, config):
    (tmp_path / runs.CONFIG).write_text(config)
    with pytest.raises(UserError, match=r"not a run's folder, but has config\.json"):
        runs.check_run(str(tmp_path), IDENTITY, overwrite=True)


def test_processes_stay_with_the_steps_they_made(run):
    run.begin("distill", 0, {"commit": "a"})
    made_by = run.begin("distill", 300, {"commit": "b"})
    run.finish("distill", {"steps": 500}, "images", 1.0, made_by)
    # Two that began at the last checkpoint and were stopped before the next one.
    for commit in ("c", "d"):
        made_by = run.begin("distill", 500, {"commit": commit})
    expected = [(0, "a"), (300, "b"), (500, "d")]
    assert [(made["from_step"], made["commit"]) for made in made_by] == expected
    assert run.last_process("distill")["commit"] == "d"
    # What was finished before is finished still, by those who made it.
    assert run.find("distill", {"steps": 500}) == run.latest("distill") == "images"
    record = json.loads((run.path / runs.STAGES).read_text())["distill"]
    assert [made["commit"] for made in record["made_by"]] == ["a", "b"]
    run.finish("distill", {"steps": 600}, "more images", 1.0, made_by)
    record = json.loads((run.path / runs.STAGES).read_text())["distill"]
    assert record["made_by"] == made_by
    assert "going_on" not in record


def test_a_stage_that_was_only_begun_is_not_finished(run):
    run.begin("distill", 0, {"commit": "a"})
    assert run.find("distill", {}) is None
    assert run.latest("distill") is None
    assert run.seconds() == {}


def test_a_stage_that_is_forgotten_is_done_again(run):
    run.finish("report", {}, "page", 1.0, [])
    run.finish("probe", {}, "heads", 1.0, [])
    run.forget("report")
    run.forget("never done")
    assert run.find("report", {}) is None
    assert run.find("probe", {}) == "heads"


def test_a_folder_is_read_by_others_and_from_home(run, monkeypatch):
    (run.path / runs.RESULTS).write_text(json.dumps(EMPTY))
    monkeypatch.setenv("HOME", str(run.path.parent))
    found = runs.read_folder("~/run")
    assert (found.path, found.stages, found.results) == (run.path, {}, EMPTY)
    assert found.config["identity"]["seed"] == 0
    (run.path / runs.CONFIG).write_text('{"identity": 3}')
    with pytest.raises(UserError, match="is no run's folder"):
        runs.read_folder(run.path)


def test_a_stage_is_found_by_its_inputs(run):
    run.finish("probe/x", {"scale": (0.1, 1.0)}, 5, 2.0, [{"commit": "a"}])
    run.finish("probe/y", {}, 6, 3.0, [])
    assert run.find("probe/x", {"scale": (0.1, 1.0)}) == 5
    assert run.find("probe/x", {"scale": (0.2, 1.0)}) is None
    assert run.seconds() == {"probe": 5.0}


@pytest.mark.parametrize("content", ["{", "[]", '{"distill": 3}', "\x00"])
def test_a_damaged_record_is_named(run, content):
    (run.path / runs.STAGES).write_text(content)
    with pytest.raises(UserError, match=r"stages\.json is damaged"):
        run.find("distill", {})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    run = runs.Run(epath.Path(tmp_path / "file" / "below"), "nothing")
    with pytest.raises(UserError, match=r"cannot write to workdir .*Not a directory"):
        run.open(IDENTITY, {})
