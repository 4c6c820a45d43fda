"""The description of settings, from which fingerprints and identities are derived."""

from __future__ import annotations

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from lgm_jax.identity import describe, digest


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()
    flag: bool = False
    extra: Inner | None = None
    listed: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    workers: int = dataclasses.field(default=4, compare=False)


# They stand for classes of the package, whose names are enough.
Inner.__module__ = Outer.__module__ = "lgm_jax.settings"


@dataclasses.dataclass(frozen=True)
class Outside:
    width: int = 1


def test_a_class_from_outside_is_named_with_its_module():
    assert describe(Outside()) == {"type": f"{__name__}:Outside"}


def test_fields_at_their_default_are_left_out_at_every_depth():
    assert describe(Outer(Inner(3))) == {"type": "Outer", "inner": {"type": "Inner", "width": 3}}
    changed = Outer(Inner(3, 2.5), ("a",), True, Inner(1), [1, 3])
    assert describe(changed) == {
        "type": "Outer",
        "inner": {"type": "Inner", "width": 3, "scale": 2.5},
        "names": ["a"],
        "flag": True,
        "extra": {"type": "Inner", "width": 1},
        "listed": [1, 3],
    }
    assert json.loads(json.dumps(describe(changed))) == describe(changed)


def test_what_changes_no_result_does_not_show():
    assert digest(Outer(Inner(3), workers=9)) == digest(Outer(Inner(3)))


@pytest.mark.parametrize("default", [0, 1.5, "x", None, False, (1, 2), Inner(2)])
def test_a_field_that_is_added_with_a_default_changes_nothing(default):
    later = dataclasses.make_dataclass(
        "Inner", [("added", object, default)], bases=(Inner,), frozen=True
    )
    later.__module__ = Inner.__module__
    assert digest(Outer(later(3, 2.0))) == digest(Outer(Inner(3, 2.0)))
    assert digest(Outer(later(3, 2.0, "other"))) != digest(Outer(Inner(3, 2.0)))


def test_values_that_mean_the_same_are_the_same():
    same = [1, 1.0, np.float32(1), np.int64(1)]
    assert {digest(Inner(2, scale)) for scale in same} == {digest(Inner(2))}
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest({3, 1, 2}) == digest(frozenset([1, 2, 3]))
    assert describe(jnp.bfloat16) == describe(np.dtype(jnp.bfloat16)) == "bfloat16"
    assert digest(jnp.arange(3, dtype=jnp.int32)) == digest(np.arange(3, dtype=">i4"))


def test_values_that_mean_something_else_are_told_apart():
    different = [
        *(None, True, 1, 0, "1", "", 1.5, math.inf, -math.inf, [1], [[1]], ["a", "b"], ["ab"]),
        *({"a": 1}, {"a": [1]}, {}, [], Inner(1), Inner(2), Outer(Inner(1)), 2**53 + 1, 1e300),
        *(np.zeros(2, np.float32), np.zeros(2, np.int32), np.zeros((2, 1), np.float32)),
        Outer(Inner(1), flag=True),
        Outer(Inner(1), listed=[2, 1]),
    ]
    assert len({digest(value) for value in different}) == len(different)
    assert digest(Outer(Inner(1), flag=1)) != digest(Outer(Inner(1), flag=True))  # type: ignore[arg-type]
    named = dataclasses.make_dataclass("Other", [("width", int)], frozen=True)
    assert digest(named(3)) != digest(Inner(3))


def test_the_digest_is_pinned():
    """Records of earlier versions hold it."""
    assert digest(Outer(Inner(3, 0.1), ("é",))) == (
        "c9214b7f0f1d7018976536e79c11bbe6486050a4df2bae9c68cd881b2a123a37"
    )


@pytest.mark.parametrize("value", [len, object(), b"bytes", {1: 2}, np.array([None]), Inner])
def test_what_has_no_description_raises(value):
    with pytest.raises(TypeError):
        describe({"nested": [value]})


def test_a_field_that_would_hide_the_class_raises():
    hidden = dataclasses.make_dataclass("Hidden", [("type", str)])
    with pytest.raises(TypeError, match=r"Hidden\.type"):
        describe(hidden("x"))
