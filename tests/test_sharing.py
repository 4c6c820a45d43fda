"""An exported set: its files, its card, and the hub that it is sent to."""

import base64
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
from huggingface_hub import constants
from PIL import Image

import lgm_jax
from lgm_jax import share
from lgm_jax.distilled import DistilledSet
from tests.launching import QUICK, start


def refuse(capsys, *arguments):
    """Shares a run, which must be refused with one line and exit code 2; gives the line."""
    capsys.readouterr()
    assert share.main(list(map(str, arguments))) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", line), line
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished quick run without probes; not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "quick"
    assert start(QUICK, "--config.stages=distill,report", workdir=workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def shared(finished, tmp_path_factory):
    """The run's images, exported."""
    folder = tmp_path_factory.mktemp("sets") / "shared"
    assert share.main([str(finished), f"--to={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def pixels(finished):
    """The run's images as 8-bit, (n, h, w, 3), in the order of their labels."""
    images, labels, _ = lgm_jax.load_distilled(finished)
    assert labels.tolist() == list(range(10))
    return np.round(images * 255).astype(np.uint8)


class TestLoaders:
    def test_pil(self, shared, pixels):
        files = sorted((shared / "train").glob("*/*.png"))
        for file, expected in zip(files, pixels, strict=True):
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image), expected)

    def test_lgm_jax(self, shared, finished, pixels):
        images, labels, names = lgm_jax.load_distilled(shared)
        originals, _, original_names = lgm_jax.load_distilled(finished)
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
        pytest.importorskip("tensorflow")
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
    def test_examples_run_as_they_stand(self, shared, finished, monkeypatch):
        pytest.importorskip("torch")
        monkeypatch.chdir(shared.parent)
        images, labels, _ = lgm_jax.load_distilled(finished)
        ours, theirs = {}, {}
        exec(example(shared / "README.md", "lgm_jax.load_distilled"), ours)
        exec(example(shared / "README.md", "torch"), theirs)
        np.testing.assert_array_equal(ours["images"], images)
        np.testing.assert_array_equal(theirs["images"].permute(0, 2, 3, 1).numpy(), images)
        assert theirs["labels"].tolist() == labels.tolist()

    def test_says_what_the_hub_reads_and_where_the_images_are_from(self, shared, finished):
        card = (shared / "README.md").read_text()
        head = front_matter(card)
        assert head["license"] == "cc-by-4.0"
        assert head["task_categories"] == ["image-classification"]
        assert head["size_categories"] == ["n<1K"]
        assert {"dataset-distillation", "digits_contrastive"} <= set(head["tags"])
        record = json.loads((finished / "stages.json").read_text())["distill"]
        weights = record["made_by"][0]["weights"]["digits_contrastive"]["sha256"]
        for fact in (
            *(record["inputs"]["data.fingerprint"], record["inputs"]["backbone.fingerprint"]),
            *(weights["model.safetensors"], '"steps": 6', "CC BY 4.0", "No probes were trained"),
        ):
            assert fact in card
        assert str(shared.parent) not in card
        assert str(Path.home()) not in card

    @pytest.fixture
    def hostile(self):
        """A run of two classes with hostile names."""
        names = ['<script>alert("a|b")</script>', "`_x_` [l](http://x)\n# $y$"]
        images = np.zeros((2, 4, 4, 3), np.float32)
        rows = {"top1_mean": 61.25, "top1_std": None, "top1_runs": [61.25], "split": "test"}
        spread = {"top1_mean": 50.0, "top1_std": 2.04, "top1_runs": [48.0, 52.0], "split": "test"}
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

    def test_names_from_data_cannot_become_markup(self, hostile):
        card = share.write_card(hostile, "someone/set")
        assert r"- 0: &lt;script&gt;alert(\"a\|b\")&lt;/script&gt;".replace(r"\"", '"') in card
        assert r"- 1: \`\_x\_\` \[l\](http://x) # \$y\$" in card
        assert "<script" not in card
        assert re.search(r"````json\n[^`]*```\\n</details>[^`]*\n````", card)

    def test_has_a_table_of_accuracies_and_an_unknown_licence(self, hostile):
        card = share.write_card(hostile, "someone/set")
        assert "| trained on | tiny | o\\|ther |\n|---|---|---|\n" in card
        assert "| **the images of this set** | 61.2 |  |\n" in card
        assert "| random real | 50.0 ± 2.0 | 50.0 ± 2.0 |\n" in card
        assert front_matter(card)["license"] == "unknown"
        assert "license_name" not in front_matter(card)
        assert front_matter(card)["pretty_name"] == "set"
        assert 'snapshot_download("someone/set", repo_type="dataset")' in card
        chosen = share.write_card(hostile, "someone/set", "cc0-1.0")
        assert front_matter(chosen)["license"] == "cc0-1.0"

    def test_says_by_what_objective_the_images_were_made(self, hostile):
        def made_by(**results):
            card = share.write_card(hostile._replace(results=hostile.results | results), "a/b")
            return re.search(r"Made with lgm_jax, by (.*)\.", card)[1]

        link = "[arXiv 2602.05391](https://arxiv.org/abs/2602.05391)"
        assert made_by() == f"statistical flow matching (objective `sfm`, {link})"
        own = {"objective": "mine:Loss", "about_objective": {"title": "a [loss]", "source": "<b>"}}
        assert made_by(**own) == r"a \[loss\] (objective `mine:Loss`, &lt;b&gt;)"
        bare = {"objective": "mine:Loss", "about_objective": {"title": "Loss"}}
        assert made_by(**bare) == "Loss (objective `mine:Loss`)"
        assert made_by(objective="mine:Loss") == "mine:Loss (objective `mine:Loss`)"

    def test_folders_of_any_name_are_in_it(self, hostile, tmp_path):
        name = os.fsdecode(b"a\xff")
        odd = hostile._replace(settings={"data.folder": name})
        share.export(odd, tmp_path / "set", name)
        card = (tmp_path / "set" / share.CARD).read_text(encoding="utf-8")
        assert front_matter(card)["pretty_name"] == r"a\xff"
        assert "# a" + 2 * "\\" + "xff\n" in card
        assert r'"data.folder": "a\udcff"' in card

    def test_imagenet_brings_its_own_terms(self, hostile):
        hostile.record["inputs"]["data.name"] = "imagenet2012"
        head = front_matter(share.write_card(hostile, "someone/set"))
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
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield seen
        server.shutdown()
        server.server_close()
        thread.join()

    def test_gets_every_file_in_one_commit(self, hub, finished, shared, capsys):
        assert share.main([str(finished), "--to=hub:me/digits", "--private"]) == 0
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

    def test_refusals_of_the_hub_are_one_line(self, hub, finished, capsys):
        for status, words in ((409, "add --update"), (403, "does not let you write me/digits")):
            hub.statuses["create"] = status
            assert words in refuse(capsys, finished, "--to=hub:me/digits")
        hub.statuses.clear()
        hub.statuses["commit"] = 400
        assert "refuses me/digits" in refuse(capsys, finished, "--to=hub:me/digits")

    def test_no_network_is_one_line(self, hub, finished, capsys, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        line = refuse(capsys, finished, "--to=hub:me/digits")
        assert "cannot be reached" in line
        assert hub.requests == []

    def test_no_token_is_one_line(self, finished, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert "`hf auth login`" in refuse(capsys, finished, "--to=hub:me/digits")

    def test_a_dry_run_prints_the_card_and_sends_nothing(self, hub, finished, capsys, monkeypatch):
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        assert share.main([str(finished), "--to=hub:me/digits", "--dry-run"]) == 0
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
    def test_of_a_command_line(self, finished, capsys, tmp_path, monkeypatch, options, words):
        monkeypatch.chdir(tmp_path)
        assert words in refuse(capsys, finished, *options)
        assert list(tmp_path.iterdir()) == []

    def test_of_what_is_no_finished_run(self, finished, capsys, tmp_path):
        target = f"--to={tmp_path / 'new'}"
        assert "is no run's folder" in refuse(capsys, tmp_path / "none", target)
        assert "is no run's folder" in refuse(capsys, finished / "distilled", target)
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("config.json", "stages.json"):
            (copy / name).write_bytes((finished / name).read_bytes())
        assert "its images are not distilled yet" in refuse(capsys, copy, target)
        (copy / "distilled").mkdir()
        archive = (finished / "distilled" / "distilled.npz").read_bytes()
        (copy / "distilled" / "distilled.npz").write_bytes(archive)
        assert "it has no results.json yet" in refuse(capsys, copy, target)
        results = json.loads((finished / "results.json").read_text()) | {"steps": 3}
        (copy / "results.json").write_text(json.dumps(results))
        assert "its results are of 3 steps" in refuse(capsys, copy, target)
        (copy / "config.json").write_text('{"identity": {"images.source": "abc"}}')
        assert "images of another source" in refuse(capsys, copy, target)
        assert not (tmp_path / "new").exists()
