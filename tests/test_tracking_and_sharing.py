"""What others see of a run: TensorBoard and W&B while it goes on, an exported set afterwards."""

import base64
import importlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from etils import epath
from huggingface_hub import constants
from PIL import Image

import launch
import lgm_jax
from lgm_jax import files, progress, runs, share, tracking
from lgm_jax.distilled import DistilledSet
from lgm_jax.errors import UserError

QUICK = "--config=configs/quickstart.py:quick"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A finished quick run that TensorBoard follows."""
    workdir = tmp_path_factory.mktemp("run") / "quick"
    options = ("--config.track=tensorboard", "--config.stages=distill,report")
    assert launch.main(["launch.py", QUICK, *options, f"--workdir={workdir}"]) == 0
    return workdir


def refuse(capsys, main, *arguments):
    """Runs a program, which must refuse with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line), line
    return line


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


class TestTensorBoard:
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
            tracker = tracking.open_trackers(["tensorboard"], folder, start)
            for step in steps:
                tracker.scalars(step, {"loss": value})
            tracker.close()
        assert len(list((tmp_path / "tensorboard").iterdir())) == 3
        events = read_events(tmp_path / "tensorboard").Scalars("loss")
        assert [(event.step, event.value) for event in events] == [(2, 1.0), (4, 1.0), (6, 2.0)]

    def test_has_events_on_disk_before_it_is_closed(self, tmp_path, read_events):
        tracker = tracking.open_trackers(["tensorboard"], epath.Path(tmp_path), 0)
        tracker.scalars(1, {"loss": 1.0})
        assert len(read_events(tmp_path / "tensorboard").Scalars("loss")) == 1
        tracker.close()

    def test_gets_pictures_of_a_size_that_it_can_show(self, tmp_path, read_events):
        tracker = tracking.open_trackers(["tensorboard"], epath.Path(tmp_path), 0)
        tracker.images(1, {"large": Image.new("RGB", (4096, 1024))})
        tracker.close()
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
        kinds = {name: tracking._Kind(open_, name, name) for name, open_ in kinds.items()}
        monkeypatch.setattr(tracking, "TRACKERS", kinds)
        with pytest.raises(UserError, match="does not start"):
            tracking.open_trackers(["first", "second"], epath.Path(tmp_path), 0)
        assert first.closed == 1
        tracking.open_trackers(["first"], epath.Path(tmp_path), 0)
        assert first.closed == 1

    def test_all_are_closed_though_one_fails_to(self):
        trackers = [Recorder(OSError("the disk is full")), Recorder(), Recorder()]
        with pytest.raises(OSError, match="the disk is full"):
            tracking.Trackers(trackers).close()
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
            tracker = tracking.open_trackers(["wandb"], folder, start)
            for step in steps:
                tracker.scalars(step, {"loss": float(step)})
            tracker.images(steps[-1], {"distilled": Image.new("RGB", (4, 2))})
            tracker.close()
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
        with pytest.raises(UserError, match=r"no API key; run `wandb login`, [^\n]+"):
            tracking.open_trackers(["wandb"], folder, 0)


def test_a_missing_package_is_named_before_any_work(tmp_path, capsys, monkeypatch):
    for kind in tracking.TRACKERS:
        monkeypatch.setitem(sys.modules, kind, None)
        option, workdir = f"--config.track={kind}", tmp_path / "run"
        line = refuse(capsys, launch.main, "launch.py", QUICK, option, f"--workdir={workdir}")
        assert f"pip install 'lgm_jax[{kind}]'" in line
        assert not workdir.exists()


def test_an_unknown_tracker_is_refused(tmp_path, capsys):
    option = "--config.track=tensorboard,wand"
    line = refuse(capsys, launch.main, "launch.py", QUICK, option, f"--workdir={tmp_path / 'run'}")
    assert "did you mean wandb?" in line


def test_other_processes_than_the_first_track_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.hosts, "is_first", lambda: False)
    tracking.check_installed(["wandb"])
    tracker = tracking.open_trackers(["tensorboard", "wandb"], epath.Path(tmp_path), 0)
    tracker.scalars(1, {"loss": 1.0})
    tracker.close()
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
        bar.close()
        shown = terminal.getvalue()
        assert "3/6" in shown
        assert re.search(r"loss 0\.5000, \S+ images/s, \d+\.\d GB, device 31\.2 of 80\.0 GB", shown)
        assert capsys.readouterr().out == ""

    def test_elsewhere_lines_tell_memory_where_it_has_grown(self, monkeypatch, capsys):
        used = iter([(100, "0.1 GB"), (105, "0.1 GB"), (200, "0.2 GB")])
        monkeypatch.setattr(progress, "_memory", lambda devices: next(used))
        bar = progress.StepProgress(0, 6, 10)
        for step in (2, 4, 6):
            bar.report(step, 0.5)
        lines = capsys.readouterr().out.splitlines()
        line = r"step {}/6  loss 0\.5000  \S+ steps/s  \S+ images/s  \d+ s left{}"
        for found, step, memory in zip(lines, (2, 4, 6), ("  0.1 GB", "", "  0.2 GB"), strict=True):
            assert re.fullmatch(line.format(step, memory), found)

    def test_memory_of_a_cpu_is_that_of_the_process(self):
        class Uncounted:
            def memory_stats(self):
                return None

        used, text = progress._memory([Uncounted()])
        # Python with JAX takes tens of megabytes at least.
        assert used > 3e7
        assert re.fullmatch(r"\d+\.\d GB", text)


@pytest.fixture(scope="module")
def shared(followed):
    """The run's images, exported."""
    folder = followed.parent / "shared"
    assert share.main([str(followed), f"--to={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def pixels(followed):
    """The run's images as 8-bit, (n, h, w, 3), in the order of their labels."""
    images, labels, _ = lgm_jax.load_distilled(followed)
    assert labels.tolist() == list(range(10))
    return np.round(images * 255).astype(np.uint8)


class TestLoaders:
    def test_pil(self, shared, pixels):
        files = sorted((shared / "train").glob("*/*.png"))
        for file, expected in zip(files, pixels, strict=True):
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image), expected)

    def test_lgm_jax(self, shared, followed, pixels):
        images, labels, names = lgm_jax.load_distilled(shared)
        originals, _, original_names = lgm_jax.load_distilled(followed)
        np.testing.assert_array_equal(images, originals)
        assert names == original_names
        rounded, again, names = lgm_jax.load_distilled(shared / "train")
        np.testing.assert_array_equal(rounded, pixels.astype(np.float32) / 255)
        assert (again.tolist(), names) == (labels.tolist(), original_names)

    def test_hugging_face_datasets(self, shared, pixels, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        scope = {}
        monkeypatch.chdir(shared.parent)
        exec(example(shared / "README.md", "load_dataset"), scope)
        dataset = scope["dataset"]
        assert dataset["label"][:] == list(range(10))
        assert dataset["class_name"][3] == "three"
        for image, expected in zip(dataset["image"], pixels, strict=True):
            np.testing.assert_array_equal(np.asarray(image), expected)

    def test_tfds(self, shared, pixels, tmp_path):
        pytest.importorskip("tensorflow_datasets")
        # A program of its own, for it imports TensorFlow.
        program = """
import sys, numpy, tensorflow_datasets
examples = tensorflow_datasets.ImageFolder(sys.argv[1]).as_dataset("train", shuffle_files=False)
found = {int(e["label"]): e["image"].numpy() for e in examples}
numpy.save(sys.argv[2], numpy.stack([found[label] for label in range(len(found))]))
"""
        arguments = [sys.executable, "-c", program, str(shared), str(tmp_path / "found.npy")]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), pixels)


def example(card, word):
    """The Python block of a card that has a word in it."""
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def front_matter(card):
    """What the hub reads of a card."""
    return yaml.safe_load(card.split("---\n")[1])


class TestCard:
    def test_examples_run_as_they_stand(self, shared, followed, monkeypatch):
        pytest.importorskip("torch")
        monkeypatch.chdir(shared.parent)
        images, labels, _ = lgm_jax.load_distilled(followed)
        ours, theirs = {}, {}
        exec(example(shared / "README.md", "lgm_jax.load_distilled"), ours)
        exec(example(shared / "README.md", "torch"), theirs)
        np.testing.assert_array_equal(ours["images"], images)
        np.testing.assert_array_equal(theirs["images"].permute(0, 2, 3, 1).numpy(), images)
        assert theirs["labels"].tolist() == labels.tolist()

    def test_says_what_the_hub_reads_and_where_the_images_are_from(self, shared, followed):
        card = (shared / "README.md").read_text()
        head = front_matter(card)
        assert head["license"] == "cc-by-4.0"
        assert head["task_categories"] == ["image-classification"]
        assert head["size_categories"] == ["n<1K"]
        assert {"dataset-distillation", "digits_contrastive"} <= set(head["tags"])
        record = json.loads((followed / "stages.json").read_text())["distill"]
        weights = record["made_by"][0]["weights"]["digits_contrastive"]["sha256"]
        for fact in (
            *(record["inputs"]["data.fingerprint"], record["inputs"]["backbone.fingerprint"]),
            *(weights["model.safetensors"], '"steps": 6', "CC BY 4.0", "No probes were trained"),
        ):
            assert fact in card
        assert str(shared.parent) not in card
        assert str(Path.home()) not in card

    @pytest.fixture
    def finished(self):
        """A run of two classes with hostile names."""
        names = ['<script>alert("a|b")</script>', "`_x_` [l](http://x)\n# $y$"]
        images = np.zeros((2, 4, 4, 3), np.float32)
        rows = {"top1_mean": 61.25, "top1_std": None, "split": "test"}
        spread = {"top1_mean": 50.0, "top1_std": 2.04, "split": "test"}
        results = {
            "dataset": "a|b",
            "ipc": 1,
            "num_classes": 2,
            "objective": "sfm",
            "backbones": ["tiny"],
            "steps": 1,
            "probe": {"tiny": {"distilled": rows, "random": spread}, "o|ther": {"random": spread}},
        }
        inputs = {"data.name": "folder", "note": "```\n</details>"}
        found = DistilledSet(images, np.arange(2, dtype=np.int32), names, "distilled.npz")
        return share.Finished(found, results, {"inputs": inputs, "made_by": []})

    def test_names_from_data_cannot_become_markup(self, finished):
        card = share.write_card(finished, "someone/set")
        assert r"- 0: &lt;script&gt;alert(\"a\|b\")&lt;/script&gt;".replace(r"\"", '"') in card
        assert r"- 1: \`\_x\_\` \[l\](http://x) # \$y\$" in card
        assert "<script" not in card
        assert re.search(r"````json\n[^`]*```\\n</details>[^`]*\n````", card)

    def test_has_a_table_of_accuracies_and_an_unknown_licence(self, finished):
        card = share.write_card(finished, "someone/set")
        assert "| trained on | tiny | o\\|ther |\n|---|---|---|\n" in card
        assert "| **the images of this set** | 61.2 |  |\n" in card
        assert "| random real | 50.0 ± 2.0 | 50.0 ± 2.0 |\n" in card
        assert front_matter(card)["license"] == "unknown"
        assert "license_name" not in front_matter(card)
        assert front_matter(card)["pretty_name"] == "set"
        assert 'snapshot_download("someone/set", repo_type="dataset")' in card
        chosen = share.write_card(finished, "someone/set", "cc0-1.0")
        assert front_matter(chosen)["license"] == "cc0-1.0"

    def test_says_by_what_objective_the_images_were_made(self, finished):
        def made_by(**results):
            card = share.write_card(finished._replace(results=finished.results | results), "a/b")
            return re.search(r"Made with lgm_jax, by (.*)\.", card)[1]

        link = "[arXiv 2602.05391](https://arxiv.org/abs/2602.05391)"
        assert made_by() == f"statistical flow matching (objective `sfm`, {link})"
        own = {"objective": "mine:Loss", "about_objective": {"title": "a [loss]", "source": "<b>"}}
        assert made_by(**own) == r"a \[loss\] (objective `mine:Loss`, &lt;b&gt;)"
        bare = {"objective": "mine:Loss", "about_objective": {"title": "Loss"}}
        assert made_by(**bare) == "Loss (objective `mine:Loss`)"
        assert made_by(objective="mine:Loss") == "mine:Loss (objective `mine:Loss`)"

    def test_folders_of_any_name_are_in_it(self, finished, tmp_path):
        name = os.fsdecode(b"a\xff")
        odd = finished._replace(settings={"data.folder": name})
        share.export(odd, tmp_path / "set", name)
        card = (tmp_path / "set" / share.CARD).read_text(encoding="utf-8")
        assert front_matter(card)["pretty_name"] == r"a\xff"
        assert "# a" + 2 * "\\" + "xff\n" in card
        assert r'"data.folder": "a\udcff"' in card

    def test_imagenet_brings_its_own_terms(self, finished):
        finished.record["inputs"]["data.name"] = "imagenet2012"
        head = front_matter(share.write_card(finished, "someone/set"))
        assert (head["license"], head["license_name"]) == ("other", "imagenet-terms-of-access")


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch):
        """A small server on this machine in place of the hub; gives the requests it got.

        `hub.statuses` answers paths that end in a word with another status.
        """
        seen = types.SimpleNamespace(requests=[], statuses={})

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers["Content-Length"]))
                seen.requests.append((self.path, body, self.headers.get("Authorization")))
                base = f"http://127.0.0.1:{self.server.server_port}/datasets/me/digits"
                word = self.path.split("/")[-1]
                if self.path.endswith("/preupload/main"):
                    word = "preupload"
                elif self.path.endswith("/commit/main"):
                    word = "commit"
                files = json.loads(body)["files"] if word == "preupload" else ()
                regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                answer = {
                    "create": {"url": base, "name": "me/digits"},
                    "validate-yaml": {"errors": [], "warnings": []},
                    "preupload": {"files": [{"path": file["path"], **regular} for file in files]},
                    "commit": {"commitUrl": f"{base}/commit/{'a' * 40}", "commitOid": "a" * 40},
                }[word]
                self.respond(seen.statuses.get(word, 200), answer)

            def respond(self, status, answer):
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format, *args):
                """Nothing is logged."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield seen
        server.shutdown()
        server.server_close()
        thread.join()

    def test_gets_every_file_in_one_commit(self, hub, followed, shared, capsys):
        assert share.main([str(followed), "--to=hub:me/digits", "--private"]) == 0
        assert "/datasets/me/digits" in capsys.readouterr().out
        bodies = {path: body for path, body, _ in hub.requests}
        assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}
        created = json.loads(bodies["/api/repos/create"])
        assert (created["name"], created["organization"]) == ("digits", "me")
        assert created["type"] == "dataset"
        assert created.get("private") or created.get("visibility") == "private"
        lines = bodies["/api/datasets/me/digits/commit/main"].splitlines()
        files = [line["value"] for line in map(json.loads, lines) if line["key"] == "file"]
        sent = {file["path"]: base64.b64decode(file["content"]) for file in files}
        local = {
            path.relative_to(shared).as_posix(): path.read_bytes()
            for path in shared.rglob("*")
            if path.is_file()
        }
        assert set(sent) == set(local)
        for name in local:
            # The card names where it is loaded from, and the archive the time it was written.
            if name not in ("README.md", "distilled.npz"):
                assert sent[name] == local[name]
        assert b'load_dataset("me/digits", split="train")' in sent["README.md"]

    def test_refusals_of_the_hub_are_one_line(self, hub, followed, capsys):
        for status, words in ((409, "add --update"), (403, "does not let you write me/digits")):
            hub.statuses["create"] = status
            assert words in refuse(capsys, share.main, followed, "--to=hub:me/digits")
        hub.statuses.clear()
        hub.statuses["commit"] = 400
        assert "refuses me/digits" in refuse(capsys, share.main, followed, "--to=hub:me/digits")

    def test_no_network_is_one_line(self, hub, followed, capsys, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        line = refuse(capsys, share.main, followed, "--to=hub:me/digits")
        assert "cannot be reached" in line
        assert hub.requests == []

    def test_no_token_is_one_line(self, followed, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert "`hf auth login`" in refuse(capsys, share.main, followed, "--to=hub:me/digits")

    def test_a_dry_run_prints_the_card_and_sends_nothing(self, hub, followed, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert share.main([str(followed), "--to=hub:me/digits", "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert "license: cc-by-4.0" in shown
        assert shown.count(".png") >= 11
        assert "14 files would be written; nothing was" in shown
        assert hub.requests == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--to=hub:set"], "has no owner: give hub:USER/set"),
            (["--to=hub:a/b/c"], "names no data set"),
            (["--to=hub:"], "names no data set"),
            (["--to=new", "--private"], "are for --to=hub:USER/NAME"),
            (["--to=new", "--license=no licence"], "--license must be"),
            (["--to=new", "--nonsense"], "unrecognized arguments: --nonsense"),
            ([], "--to"),
            (["--to=."], "exists already"),
            (["--to=" + 300 * "x"], "File name too long"),
            (["--to=gs://bucket/set"], "is no folder of this machine"),
        ],
    )
    def test_of_a_command_line(self, followed, capsys, tmp_path, monkeypatch, options, words):
        monkeypatch.chdir(tmp_path)
        assert words in refuse(capsys, share.main, followed, *options)
        assert list(tmp_path.iterdir()) == []

    def test_of_what_is_no_finished_run(self, followed, capsys, tmp_path):
        target = f"--to={tmp_path / 'new'}"
        assert "is no run's folder" in refuse(capsys, share.main, tmp_path / "none", target)
        assert "is no run's folder" in refuse(capsys, share.main, followed / "distilled", target)
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("config.json", "stages.json"):
            (copy / name).write_bytes((followed / name).read_bytes())
        assert "its images are not distilled yet" in refuse(capsys, share.main, copy, target)
        (copy / "distilled").mkdir()
        archive = (followed / "distilled" / "distilled.npz").read_bytes()
        (copy / "distilled" / "distilled.npz").write_bytes(archive)
        assert "it has no results.json yet" in refuse(capsys, share.main, copy, target)
        results = json.loads((followed / "results.json").read_text()) | {"steps": 3}
        (copy / "results.json").write_text(json.dumps(results))
        assert "its results are of 3 steps" in refuse(capsys, share.main, copy, target)
        (copy / "config.json").write_text('{"identity": {"images.source": "abc"}}')
        assert "images of another source" in refuse(capsys, share.main, copy, target)
        assert not (tmp_path / "new").exists()
