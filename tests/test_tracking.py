"""What TensorBoard, W&B and a terminal show of a run while it goes on."""

import importlib
import io
import json
import re
import sys
import types

import numpy as np
import pytest
from etils import epath
from PIL import Image

import launch
from lgm_jax import files, progress, runs, tracking
from lgm_jax.errors import UserError
from tests.launching import QUICK, refuse


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A finished quick run that TensorBoard follows."""
    workdir = tmp_path_factory.mktemp("run") / "quick"
    options = ("--config.track=tensorboard", "--config.stages=distill,report")
    assert launch.main(["launch.py", QUICK, *options, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def read_events(monkeypatch):
    """TensorBoard's own reader of a folder of events."""
    # Its switch to do without TensorFlow, where that is installed.
    monkeypatch.setitem(
        sys.modules, "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
    )
    name = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = importlib.import_module(name)

    def read(folder):
        events = accumulator.EventAccumulator(
            str(folder), size_guidance=accumulator.STORE_EVERYTHING_SIZE_GUIDANCE
        )
        events.Reload()
        return events

    return read


@pytest.mark.parametrize(
    ("steps", "every", "logged"),
    [
        # Each step of a run of few.
        (30, 100, list(range(1, 31))),
        # Twenty at least, and the first and the last.
        (100, 100, [1, *range(5, 101, 5)]),
        (4001, 1000, [1, *range(200, 4001, 200), 4001]),
        (10_000, 100, [1, *range(100, 10_001, 100)]),
    ],
)
def test_short_runs_log_twenty_steps_and_all_their_first_and_last(steps, every, logged):
    found = [step for step in range(1, steps + 1) if progress.is_logged(step, steps, every)]
    assert found == logged


class TestTensorBoard:
    @pytest.mark.slow
    def test_shows_what_the_run_wrote_by_step(self, followed, read_events):
        events = read_events(followed / "tensorboard")
        lines = [json.loads(line) for line in (followed / "metrics.jsonl").read_text().splitlines()]
        losses = events.Scalars("loss")
        assert (
            [event.step for event in losses]
            == [1, 2, 3, 4, 5, 6]
            == [line["step"] for line in lines]
        )
        np.testing.assert_allclose(
            [event.value for event in losses], [line["loss"] for line in lines], atol=1e-6
        )
        rates = [event.value for event in events.Scalars("steps_per_second")]
        images = [event.value for event in events.Scalars("images_per_second")]
        # Ten views of synthetic images a step.
        np.testing.assert_allclose(images, 10 * np.asarray(rates), rtol=1e-5)
        assert {event.value for event in events.Scalars("learning_rate")} == {np.float32(0.03)}
        pictures = events.Images("distilled")
        assert [event.step for event in pictures] == [3, 6]
        png = (followed / "progress" / "step_000006.png").read_bytes()
        assert pictures[-1].encoded_image_string == png

    def test_forgets_the_steps_that_a_later_process_makes_again(self, tmp_path, read_events):
        folder = epath.Path(tmp_path)
        for start, steps, value in ((0, (2, 4, 6), 1.0), (4, (6, 8), 2.0), (6, (), 0.0)):
            with tracking.opened(["tensorboard"], folder, start) as (tracker,):
                for step in steps:
                    tracker.scalars(step, {"loss": value})
        assert len(list((tmp_path / "tensorboard").iterdir())) == 3
        events = read_events(tmp_path / "tensorboard").Scalars("loss")
        assert [(event.step, event.value) for event in events] == [(2, 1.0), (4, 1.0), (6, 2.0)]

    def test_has_events_on_disk_before_it_is_closed(self, tmp_path, read_events):
        with tracking.opened(["tensorboard"], epath.Path(tmp_path), 0) as (tracker,):
            tracker.scalars(1, {"loss": 1.0})
            assert len(read_events(tmp_path / "tensorboard").Scalars("loss")) == 1

    def test_gets_pictures_of_a_size_that_it_can_show(self, tmp_path, read_events):
        with tracking.opened(["tensorboard"], epath.Path(tmp_path), 0) as (tracker,):
            tracker.images(1, {"large": tracking.shrink(Image.new("RGB", (4096, 1024)))})
        (event,) = read_events(tmp_path / "tensorboard").Images("large")
        with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
            assert picture.size == (event.width, event.height) == (2048, 512)


class Recorder:
    """A tracker that remembers whether it was closed, and may fail to."""

    def __init__(self, refusal=None):
        self.refusal, self.closed = refusal, 0

    def scalars(self, step, values):
        pass

    def images(self, step, pictures):
        pass

    def close(self):
        self.closed += 1
        if self.refusal:
            raise self.refusal


class TestSeveral:
    def test_those_that_opened_are_closed_where_another_does_not(self, tmp_path, monkeypatch):
        first = Recorder()

        def refuse_to_open(folder, start):
            raise UserError("it does not start")

        kinds = {"first": lambda folder, start: first, "second": refuse_to_open}
        monkeypatch.setattr(tracking, "TRACKERS", kinds)
        folder = epath.Path(tmp_path)
        with (
            pytest.raises(UserError, match="does not start"),
            tracking.opened(["first", "second"], folder, 0),
        ):
            pass
        assert first.closed == 1

    def test_all_are_closed_though_one_fails_to(self, tmp_path, monkeypatch):
        trackers = [Recorder(OSError("the disk is full")), Recorder(), Recorder()]
        kinds = {str(i): lambda *_, each=each: each for i, each in enumerate(trackers)}
        monkeypatch.setattr(tracking, "TRACKERS", kinds)
        opened = tracking.opened(list(kinds), epath.Path(tmp_path), 0)
        with pytest.raises(OSError, match="the disk is full"), opened:
            assert [tracker.closed for tracker in trackers] == [0, 0, 0]
        assert [tracker.closed for tracker in trackers] == [1, 1, 1]


class FakeWandB(types.ModuleType):
    """What the tracker uses of the client, which remembers what it was told."""

    class Error(Exception):
        """As the client's."""

    def __init__(self, refusal=None):
        super().__init__("wandb")
        self.refusal, self.started, self.step = refusal, [], 0
        self.logged, self.finished = [], 0
        self.Image = np.asarray

    def init(self, **options):
        if self.refusal:
            raise self.Error(self.refusal)
        self.started.append(options)
        return self

    def log(self, values, step):
        self.step = step
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1
        self.step += 1


class TestWandB:
    @pytest.fixture
    def folder(self, tmp_path):
        """A run folder with a config, and no more."""
        folder = epath.Path(tmp_path / "mine")
        folder.mkdir()
        files.write_json(folder / runs.CONFIG, {"config": {"steps": 6}})
        return folder

    def test_goes_on_with_its_run_and_takes_no_step_back(self, folder, monkeypatch):
        client = FakeWandB()
        monkeypatch.setitem(sys.modules, "wandb", client)
        for start, steps in ((0, (2, 4)), (2, (3, 4, 6))):
            with tracking.opened(["wandb"], folder, start) as (tracker,):
                for step in steps:
                    tracker.scalars(step, {"loss": float(step)})
                tracker.images(steps[-1], {"distilled": Image.new("RGB", (4, 2))})
        first, second = client.started
        assert first["id"] == second["id"]
        assert (first["name"], first["resume"], first["config"]) == ("mine", "allow", {"steps": 6})
        assert first["dir"] == str(folder)
        assert client.finished == 2
        # Steps 3 and 4 came too late; values and pictures of one step are one row there.
        assert [step for step, _ in client.logged] == [2, 4, 4, 6, 6]
        assert client.logged[-1][1]["distilled"].shape == (2, 4, 3)

    def test_a_refusal_of_the_client_is_one_line(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", FakeWandB("no API key\nconfigured"))
        words = r"no API key; run `wandb login`, [^\n]+"
        with pytest.raises(UserError, match=words), tracking.opened(["wandb"], folder, 0):
            pass


def test_a_missing_package_is_named_before_any_work(tmp_path, capsys, monkeypatch):
    for kind in tracking.TRACKERS:
        monkeypatch.setitem(sys.modules, kind, None)
        option, workdir = f"--config.track={kind}", tmp_path / "run"
        line = refuse(capsys, QUICK, option, workdir=workdir)
        assert f"pip install 'lgm_jax[{kind}]'" in line
        assert not workdir.exists()


def test_an_unknown_tracker_is_refused(tmp_path, capsys):
    option = "--config.track=tensorboard,wand"
    line = refuse(capsys, QUICK, option, workdir=tmp_path / "run")
    assert "did you mean wandb?" in line


def test_other_processes_than_the_first_track_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.hosts, "is_first", lambda: False)
    tracking.check_installed(["wandb"])
    with tracking.opened(["tensorboard", "wandb"], epath.Path(tmp_path), 0) as trackers:
        assert trackers == []
    assert list(tmp_path.iterdir()) == []


class Device:
    """A device that counts its memory."""

    def memory_stats(self):
        return {"peak_bytes_in_use": 31_200_000_000, "bytes_limit": 80_000_000_000}


class TestProgress:
    def test_a_terminal_shows_a_bar(self, monkeypatch, capsys):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = progress.StepProgress(2, 6, 10, [Device()])
        bar.advance()
        bar.report(3, 0.5)
        bar.advance()
        bar.report(4, 0.5)
        bar.close()
        shown = terminal.getvalue()
        assert "compiling 2/6" in shown
        assert re.search(r"distill 3/6 .* left, loss 0\.5000 *\r", shown)
        assert re.search(r"distill 4/6 .* left, loss 0\.5000  \S+ images/s  31\.2 of 80 GB", shown)
        assert capsys.readouterr().out == ""

    def test_elsewhere_lines_tell_memory_where_it_has_grown(self, capsys):
        class Device:
            peaks = iter((1.0e12, 1.05e12, 2.0e12))

            def memory_stats(self):
                return {"peak_bytes_in_use": int(next(self.peaks))}

        bar = progress.StepProgress(0, 6, 10, [Device()])
        for step in (2, 4, 6):
            bar.report(step, 0.5)
        lines = capsys.readouterr().out.splitlines()
        assert lines.pop(0) == "compiling the step"
        line = r"step {}/6  loss 0\.5000  \S+ steps/s  \S+ images/s  \d+ s left{}"
        first, last = (rf"  {peak}\.0 GB" for peak in (1000, 2000))
        for found, step, memory in zip(lines, (2, 4, 6), (first, "", last), strict=True):
            assert re.fullmatch(line.format(step, memory), found)

    def test_memory_of_a_cpu_is_that_of_the_process(self, capsys):
        class Uncounted:
            def memory_stats(self):
                return None

        bar = progress.StepProgress(0, 6, 10, [Uncounted()])
        bar.report(2, 0.5)
        memory = re.search(r"s left  (\d+\.\d) GB$", capsys.readouterr().out, re.MULTILINE)
        # Python with JAX takes a hundred megabytes at least.
        assert float(memory[1]) >= 0.1
