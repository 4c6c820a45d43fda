"""Backbones from the hub: the real client against a small server on this machine that imitates it.

Also what the client's cache, its offline mode and its errors turn into.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants, hf_hub_download

from lgm_jax import backbones
from lgm_jax.backbones import files, specs
from lgm_jax.errors import UserError

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclasses.dataclass
class Hub:
    """A hub on this machine.

    Attributes:
        repos: Content of each file of each repository.
        gated: Repositories that need terms accepted.
        broken: Whether every request is answered with an error of the server.
        requests: What was asked for.
    """

    repos: dict[str, dict[str, bytes]]
    gated: set[str]
    requests: list[str]
    broken: bool = False


def _answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a file, a repository's commit, or the list of its files."""
    parts = urllib.parse.urlsplit(path).path.strip("/").split("/")
    asked_of_api = parts[:2] == ["api", "models"]
    owner, name, *rest = parts[2:] if asked_of_api else parts
    repo, revision = f"{owner}/{name}", rest[1] if len(rest) > 1 else "main"
    if hub.broken:
        return 500, {}, b""
    if repo not in hub.repos:
        return 401, {"X-Error-Code": "RepoNotFound"}, b""
    if repo in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo"}, b""
    commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
    if commit is None:
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""
    if asked_of_api:
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": "0"}
            for path, content in hub.repos[repo].items()
        ]
        answer = files if rest[:1] == ["tree"] else {"id": repo, "sha": commit, "siblings": []}
        return 200, {}, json.dumps(answer).encode()
    file = "/".join(rest[2:])
    if file not in hub.repos[repo]:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
    body = hub.repos[repo][file]
    etag = hashlib.sha256(body).hexdigest()
    return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, body


def _point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A running hub that the client is pointed to, with an empty cache."""
    served = Hub({}, set(), [])

    class Handler(BaseHTTPRequestHandler):
        def _send(self, *, with_body: bool) -> None:
            served.requests.append(self.path)
            status, headers, body = _answer(served, self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self._send(with_body=False)

        def do_GET(self) -> None:
            self._send(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    _point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def _publish(hub: Hub, repo: str, folder: Path) -> None:
    hub.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}


def _message(source: str, **options) -> str:
    with pytest.raises(UserError) as info:
        backbones.load(source, **options)
    message = str(info.value)
    assert "\n" not in message
    return message


def _assert_equal(ours: backbones.Backbone, theirs: backbones.Backbone) -> None:
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_repository_is_downloaded_once_and_recorded(hub, vit_folder, monkeypatch):
    _publish(hub, "someone/tiny", vit_folder)
    backbone = backbones.load("someone/tiny")
    _assert_equal(backbone, backbones.load(vit_folder))
    digest = hashlib.sha256((vit_folder / files.WEIGHTS).read_bytes()).hexdigest()
    assert backbone.name == "tiny"
    assert backbone.provenance == {
        "source": "someone/tiny",
        "revision": COMMITS["main"],
        "sha256": {files.WEIGHTS: digest},
    }
    assert any(path.endswith(files.WEIGHTS) for path in hub.requests)
    # Then from the cache, without network too.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    again = backbones.load("someone/tiny")
    _assert_equal(again, backbone)
    assert again.provenance == backbone.provenance
    assert hub.requests == []


def test_a_revision_is_resolved_to_its_commit(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    assert backbones.load("someone/tiny", revision="v1").provenance["revision"] == COMMITS["v1"]
    assert "has no revision 'v2'" in _message("someone/tiny", revision="v2")


def test_a_revision_of_a_folder_is_refused(hub, vit_folder):
    assert "backbone.revision is for the hub" in _message(str(vit_folder), revision="main")
    assert "backbone.revision is for the hub" in _message("digits_distilled", revision="main")


def test_a_folder_never_touches_the_network(hub, vit_folder):
    backbones.load(vit_folder)
    backbones.load("digits_contrastive")
    assert hub.requests == []


@pytest.fixture
def registered(vit_folder, monkeypatch) -> str:
    """A name of the table whose weights the hub may have in two places."""
    config = json.loads((vit_folder / files.CONFIG).read_text())
    sources = dict.fromkeys(("first/tiny", "second/tiny"))
    entry = specs.Entry("a test", "Apache-2.0", sources, config)
    monkeypatch.setattr(specs, "NAMES", {**specs.NAMES, "tiny_vit": entry})
    return "tiny_vit"


def test_an_export_says_where_it_is_from(hub, vit_folder, tmp_path):
    _publish(hub, "someone/tiny", vit_folder)
    first = backbones.load("someone/tiny", revision="v1")
    for source, folder in (("someone/tiny", "one"), (str(tmp_path / "one"), "two")):
        revision = "v1" if folder == "one" else None
        backbones.export(source, tmp_path / folder, revision=revision)
        exported = backbones.load(tmp_path / folder)
        assert exported.provenance["exported_from"] == first.provenance
        assert exported.provenance["source"] == folder
    assert first.provenance["revision"] == COMMITS["v1"]


def test_a_registered_name_needs_weights_only(hub, vit_folder, registered):
    hub.repos["first/tiny"] = {files.WEIGHTS: (vit_folder / files.WEIGHTS).read_bytes()}
    backbone = backbones.load(registered)
    assert backbone.name == registered
    assert backbone.provenance["source"] == "first/tiny"
    _assert_equal(backbone, backbones.load(vit_folder))
    assert not any(path.endswith(files.CONFIG) for path in hub.requests)


def test_the_first_source_with_safetensors_is_taken(hub, vit_folder, registered):
    hub.repos["first/tiny"] = {"pytorch_model.bin": b"\x80\x04."}
    assert "first/tiny has no model.safetensors on the hub or in its cache" in _message(registered)
    hub.repos["second/tiny"] = {files.WEIGHTS: (vit_folder / files.WEIGHTS).read_bytes()}
    assert backbones.load(registered).provenance["source"] == "second/tiny"


def test_shards_are_downloaded(hub, vit_folder, monkeypatch):
    tensors = safetensors.numpy.load_file(vit_folder / files.WEIGHTS)
    names = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    hub.repos["someone/tiny"] = {
        "config.json": (vit_folder / files.CONFIG).read_bytes(),
        "model.safetensors.index.json": json.dumps({"weight_map": names}).encode(),
    } | {
        name: safetensors.numpy.save({k: v for k, v in tensors.items() if names[k] == name})
        for name in set(names.values())
    }
    backbone = backbones.load("someone/tiny")
    _assert_equal(backbone, backbones.load(vit_folder))
    assert set(backbone.provenance["sha256"]) == set(names.values())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _assert_equal(backbones.load("someone/tiny"), backbone)


def test_a_cache_that_was_filled_by_downloading_is_enough(hub, vit_folder, registered, monkeypatch):
    """Such a cache holds no record of the files that a repository lacks."""
    _publish(hub, "someone/tiny", vit_folder)
    _publish(hub, "second/tiny", vit_folder)
    for repo in ("someone/tiny", "second/tiny"):
        for name in hub.repos[repo]:
            hf_hub_download(repo, name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _assert_equal(backbones.load("someone/tiny"), backbones.load(vit_folder))
    # The first source is not in the cache, the second is.
    assert backbones.load(registered).provenance["source"] == "second/tiny"


def test_weights_that_are_a_pickle_are_refused_with_a_way_out(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    hub.repos["someone/tiny"]["pytorch_model.bin"] = hub.repos["someone/tiny"].pop(files.WEIGHTS)
    message = _message("someone/tiny")
    assert "has no model.safetensors" in message
    assert "`hf download someone/tiny --local-dir=FOLDER`, and give FOLDER" in message
    assert not any(path.endswith(".bin") for path in hub.requests)


def test_a_gated_repository_says_how_to_get_in(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    hub.gated.add("someone/tiny")
    message = _message("someone/tiny")
    assert "gated: accept its terms on its page" in message
    assert "hf auth login" in message


@pytest.mark.parametrize("trouble", ["gated", "gone", "broken"])
@pytest.mark.parametrize("revision", [None, COMMITS["main"]])
@pytest.mark.parametrize("filled_by", ["loading", "downloading"])
def test_what_the_cache_holds_is_used_where_the_hub_refuses(
    hub, vit_folder, trouble, revision, filled_by, monkeypatch
):
    # Between its attempts, huggingface_hub waits for seconds.
    monkeypatch.setattr("time.sleep", lambda _: None)
    _publish(hub, "someone/tiny", vit_folder)
    if filled_by == "loading":
        backbones.load("someone/tiny", revision=revision)
    else:
        for name in hub.repos["someone/tiny"]:
            hf_hub_download("someone/tiny", name, revision=revision)
    if trouble == "gated":
        hub.gated.add("someone/tiny")
    elif trouble == "gone":
        del hub.repos["someone/tiny"]
    else:
        hub.broken = True
    backbone = backbones.load("someone/tiny", revision=revision)
    _assert_equal(backbone, backbones.load(vit_folder))
    assert backbone.provenance["revision"] == COMMITS["main"]


def test_an_error_of_the_server_is_said(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    hub.broken = True
    message = _message("someone/tiny")
    assert "cannot download someone/tiny from the hub" in message
    assert "500" in message


def test_an_unknown_repository_is_neither_folder_nor_repository(hub):
    message = _message("someone/nothing")
    assert "neither a folder here nor a repository on the hub" in message


def test_a_repository_without_config_is_refused(hub, vit_folder):
    hub.repos["someone/tiny"] = {files.WEIGHTS: (vit_folder / files.WEIGHTS).read_bytes()}
    assert "someone/tiny has no config.json on the hub or in its cache" in _message("someone/tiny")


def test_broken_downloads_are_named(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    whole = hub.repos["someone/tiny"][files.WEIGHTS]
    hub.repos["someone/tiny"][files.WEIGHTS] = whole[:100]
    assert "truncated or not a safetensors file" in _message("someone/tiny")


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_it_is_said_what_to_download_and_where_to_put_it(
    hub, registered, monkeypatch, offline
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    # Nobody listens there.
    _point_to(monkeypatch, "http://127.0.0.1:9")
    for source, repo in ((registered, "first/tiny"), ("someone/tiny", "someone/tiny")):
        message = _message(source)
        assert f"{repo} is not in the cache, and the hub cannot be reached" in message
        assert f"hf download {repo}" in message
        assert "give its path" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinov2_vitb41", "unknown backbone"),
        ("a/b/c", "there is no folder a/b/c"),
        ("../missing", "there is no folder ../missing"),
        ("owner/na me", "there is no folder owner/na me"),
    ],
)
def test_what_can_be_no_repository_is_not_looked_for(hub, name, words):
    assert words in _message(name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("hf-hub:someone/tiny", "main"),
        ("hf_hub:someone/tiny", "main"),
        ("hf://someone/tiny", "main"),
        ("hf-hub:someone/tiny@v1", "v1"),
        ("https://huggingface.co/someone/tiny", "main"),
        ("https://huggingface.co/someone/tiny/", "main"),
        ("http://hf.co/someone/tiny", "main"),
        ("huggingface.co/someone/tiny", "main"),
        ("https://huggingface.co/someone/tiny/tree/main", "main"),
        ("https://huggingface.co/someone/tiny/tree/v1", "v1"),
        ("https://huggingface.co/someone/tiny/blob/v1/model.safetensors", "v1"),
        ("https://huggingface.co/someone/tiny/resolve/main/config.json?download=true", "main"),
        ("https://huggingface.co/someone/tiny/discussions", "main"),
        ("https://huggingface.co/someone/tiny?library=timm", "main"),
    ],
)
def test_a_repository_may_be_named_as_pages_and_programs_name_it(hub, vit_folder, source, revision):
    _publish(hub, "someone/tiny", vit_folder)
    backbone = backbones.load(source)
    assert backbone.name == "tiny"
    assert backbone.provenance["source"] == "someone/tiny"
    assert backbone.provenance["revision"] == COMMITS[revision]
    assert backbone.fingerprint == backbones.load(vit_folder).fingerprint


def test_two_revisions_of_one_name_are_refused(hub, vit_folder):
    _publish(hub, "someone/tiny", vit_folder)
    source = "https://huggingface.co/someone/tiny/tree/v1"
    assert backbones.load(source, revision="v1").provenance["revision"] == COMMITS["v1"]
    assert "names revision v1, and backbone.revision main" in _message(source, revision="main")


@pytest.mark.parametrize(
    "source",
    [
        *("https://huggingface.co/someone", "https://huggingface.co/datasets/someone/tiny"),
        *("https://example.org/someone/tiny", "hf-hub:tiny/", "hf-hub:../tiny"),
    ],
)
def test_an_address_of_anything_else_is_not_looked_for(hub, source):
    assert f"there is no folder {source}" in _message(source)
    assert hub.requests == []
