"""Names of a config that stand for classes, ours and others."""

from __future__ import annotations

import dataclasses

import pytest

from lgm_jax import objectives
from lgm_jax.errors import UserError
from lgm_jax.plugins import make, resolve

HERE = f"{__name__}:Margin"


@dataclasses.dataclass(frozen=True)
class Margin:
    margin: float = 1.0


def test_ours_go_by_their_names_and_others_by_where_they_are():
    assert resolve("objective", "lgm", objectives.OBJECTIVES) is objectives.LGM
    assert resolve("objective", HERE, objectives.OBJECTIVES) is Margin
    assert make("objective", HERE, objectives.OBJECTIVES, {"margin": 2.0}) == Margin(2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lgn", "unknown objective 'lgn': did you mean lgm"),
        (
            "no_such_module:Margin",
            "objective 'no_such_module:Margin' cannot be imported: No module",
        ),
        (f"{__name__}:Margins", "has no attribute 'Margins'"),
        (":Margin", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        resolve("objective", name, objectives.OBJECTIVES)


def test_a_module_that_is_no_python_is_refused(tmp_path, monkeypatch):
    (tmp_path / "not_python.py").write_text("class Margin(")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'not_python:Margin' cannot be imported: .*never"):
        resolve("objective", "not_python:Margin", {})


def test_options_that_it_does_not_take_are_refused():
    with pytest.raises(UserError, match=r"does not take its options: .*marign"):
        make("objective", HERE, objectives.OBJECTIVES, {"marign": 2.0})
