"""What names a backbone: its fingerprint for records, its name for people."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lgm_jax import backbones
from lgm_jax.backbones import load, network, rotary, specs, vit_spec

# Every field of every dataclass that a fingerprint is derived from, with its default. A released
# default never changes, and a field without one never gets one: every store and every run that was
# made with it would mean something else. Lines are only ever added.
DEFAULTS = {
    "Settings": {
        "weights": "needed",
        "spec": "needed",
        "preprocessing": "needed",
        "dtype": "float32",
        "params_dtype": "float32",
        "position_offset": 0.0,
        "side": 0,
    },
    "ViTSpec": {
        "resolution": "needed",
        "width": "needed",
        "depth": "needed",
        "embed": "needed",
        "attention": "needed",
        "mlp": "needed",
        "pool": vit_spec.PoolSpec("cls", 1, 0),
        "layer_scale": False,
        "norm_eps": 1e-6,
        "norm": "layer",
    },
    "EmbedSpec": {
        "patch": "needed",
        "bias": True,
        "class_token": True,
        "registers": 0,
        "positions": "all",
        "antialias": False,
        "norm": False,
        "patch_norm": False,
    },
    "AttentionSpec": {"heads": "needed", "biases": "qkv", "rotary": None, "out_bias": True},
    "MlpSpec": {
        "width": "needed",
        "activation": "gelu",
        "gated": False,
        "norm": False,
        "bias": True,
    },
    "PoolSpec": {
        "kind": "cls",
        "blocks": 1,
        "projection": 0,
        "heads": 0,
        "mlp": None,
        "prefix": False,
    },
    "Rotary": {
        "layout": "needed",
        "grid": "needed",
        "base": "needed",
        "reference": 0,
        "offset": 0,
        "columns_first": False,
    },
    "Preprocessing": {"mean": "needed", "std": "needed"},
}
CLASSES = {
    cls.__name__: cls
    for cls in (
        vit_spec.ViTSpec,
        vit_spec.EmbedSpec,
        vit_spec.AttentionSpec,
        vit_spec.MlpSpec,
        vit_spec.PoolSpec,
        rotary.Rotary,
        network.Preprocessing,
    )
}


def _with_a_field(cls, default):
    """The class as a later version might have it."""
    later = dataclasses.make_dataclass(
        cls.__name__, [("added", object, default)], bases=(cls,), frozen=True
    )
    later.__module__ = cls.__module__
    return later


def _rebuilt(value, name, later):
    """A nested dataclass with all of one class replaced by the later version of it."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = {
        field.name: _rebuilt(getattr(value, field.name), name, later)
        for field in dataclasses.fields(value)
    }
    return (later if type(value).__name__ == name else type(value))(**fields)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_field_that_is_added_with_a_default_changes_no_description(name):
    identity = pytest.importorskip("lgm_jax.identity")
    replaced = 0
    for entry in specs.NAMES.values():
        before = backbones.Settings("0" * 64, entry.spec, entry.published.preprocessing)
        for default in (None, 0, "x", ()):
            after = _rebuilt(before, name, _with_a_field(CLASSES[name], default))
            replaced += "added" in repr(after)
            assert identity.digest(after) == identity.digest(before)
    # Every class is in some entry.
    assert replaced


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"Rotary"}))
def test_a_field_that_is_added_with_a_default_changes_no_fingerprint(monkeypatch, name):
    before = load("digits_masked").fingerprint
    found, published, params = backbones.read_checkpoint("digits_masked")
    changed = _rebuilt(published, name, _with_a_field(CLASSES[name], 0))
    assert "added=0" in repr(changed)
    monkeypatch.setattr(backbones, "read_checkpoint", lambda *_, **__: (found, changed, params))
    assert load("digits_masked").fingerprint == before


@pytest.mark.parametrize("name", ["Settings", *CLASSES])
def test_no_released_default_has_changed(name):
    cls = backbones.Settings if name == "Settings" else CLASSES[name]
    seen = {
        field.name: "needed" if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls)
    }
    # As text, since True equals 1 and 0 equals 0.0.
    assert {k: repr(v) for k, v in seen.items()} == {
        k: repr(v) for k, v in DEFAULTS[cls.__name__].items()
    }


def test_fingerprints_are_pinned():
    """Feature stores and runs of earlier versions hold them."""
    assert load("digits_contrastive").fingerprint == (
        "57361e73b1ae51bc85c035fb195067c1f6b3b45870275cfd2b6312f825a7c78b"
    )
    options = {"normalization": "imagenet", "dtype": "bfloat16", "pooling": "cls+mean:2"}
    assert load("digits_masked", **options, resolution=40).fingerprint == (
        "dae49cf04e52e9a0670d28363b5960dffed96277a01c58b7e93db01621a5ccee"
    )


def test_every_setting_that_changes_features_changes_the_fingerprint():
    options = [
        {},
        *({"pooling": pooling} for pooling in ("mean", "cls+mean", "cls:2", "mean:2")),
        *({"normalization": "imagenet"}, {"resolution": 40}),
        *({"dtype": "bfloat16"}, {"params_dtype": "bfloat16"}),
    ]
    found = [load("digits_contrastive", **each).fingerprint for each in options]
    assert len(set(found)) == len(found)
    # What changes nothing does not.
    same = [{"attention": "xla"}, {"pooling": "cls"}, {"resolution": 32}, {"position_offset": 0.1}]
    assert {load("digits_contrastive", **each).fingerprint for each in same} == {found[0]}


def _names(*loaded: backbones.Backbone) -> list[str]:
    names = backbones.distinct_names(loaded)
    assert len(names) == len(loaded)
    assert len(set(names)) == len({(b.name, b.fingerprint) for b in loaded})
    return names


def test_a_name_that_is_enough_is_left_alone(write_vit, tmp_path):
    vit_folder = write_vit(tmp_path / "vit_tiny")
    loaded = [load("digits_contrastive"), load(vit_folder), load("digits_masked")]
    assert _names(*loaded) == ["digits_contrastive", "vit_tiny", "digits_masked"]
    # The same one twice needs no two names.
    assert _names(loaded[1], loaded[1]) == ["vit_tiny", "vit_tiny"]
    assert backbones.distinct_names([]) == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([{"pooling": "cls"}, {"pooling": "mean:2"}], ["pooling=cls", "pooling=mean:2"]),
        ([{}, {"resolution": 40}], ["resolution=32", "resolution=40"]),
        ([{}, {"dtype": "bfloat16"}], ["dtype=float32", "dtype=bfloat16"]),
        ([{}, {"params_dtype": "bfloat16"}], ["params_dtype=float32", "params_dtype=bfloat16"]),
        ([{}, {"normalization": "imagenet"}], ["normalization=half", "normalization=imagenet"]),
        (
            [{}, {"pooling": "mean"}, {"dtype": "bfloat16"}],
            [
                "pooling=cls, dtype=float32",
                "pooling=mean, dtype=float32",
                "pooling=cls, dtype=bfloat16",
            ],
        ),
        # One setting that tells all apart is enough.
        (
            [{"dtype": "bfloat16", "pooling": "mean"}, {}, {"pooling": "cls:2"}],
            ["pooling=mean", "pooling=cls", "pooling=cls:2"],
        ),
    ],
)
def test_backbones_of_one_name_are_named_by_what_differs(options, names):
    loaded = [load("digits_contrastive", **each) for each in options]
    assert _names(*loaded) == [f"digits_contrastive ({name})" for name in names]
    others = [load("digits_distilled"), *loaded]
    assert _names(*others)[0] == "digits_distilled"


def test_folders_of_one_name_are_named_by_what_their_files_differ_in(write_vit, tmp_path):
    first, pooled = (write_vit(tmp_path / pool / "vit", pool=pool) for pool in ("token", "map"))
    assert _names(load(first), load(pooled)) == ["vit (pooling=cls)", "vit (pooling=map)"]
    # The same weights, understood otherwise.
    tanh = write_vit(tmp_path / "c" / "vit", act_layer="gelu_tanh")
    names = ["vit (mlp.activation=gelu)", "vit (mlp.activation=gelu_tanh)"]
    assert _names(load(first), load(tanh)) == names
    other = load(write_vit(tmp_path / "d" / "vit", seed=1))
    hashes = [each.settings.weights[:8] for each in (load(first), other)]
    assert _names(load(first), other) == [f"vit (weights={digits})" for digits in hashes]


def test_a_folder_with_the_name_of_another_is_told_apart(write_vit, tmp_path):
    loaded = [
        *(load("digits_contrastive", pooling=pooling) for pooling in ("cls", "mean")),
        load(write_vit(tmp_path / "digits_contrastive (pooling=cls)")),
    ]
    assert len(set(_names(*loaded))) == 3


def test_backbones_made_by_hand_are_named_too():
    hand = [
        backbones.Backbone("toy", np.asarray, None, 6, 8, fingerprint)
        for fingerprint in ("a" * 64, "b" * 64)
    ]
    assert _names(*hand) == ["toy (fingerprint=aaaaaaaa)", "toy (fingerprint=bbbbbbbb)"]
