"""Whatever is typed for a config key is taken or refused with one line."""

import re

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import launch
from configs import common
from lgm_jax.settings import make_recipe

WORDS = [
    "",
    " ",
    "none",
    "nan",
    "inf",
    "-inf",
    "true",
    "a,b",
    "../..",
    "~",
    "\x00",
    "é" * 300,
    "-1",
]
NUMBERS = st.one_of(
    st.integers(-5, 300),
    st.sampled_from([2**31, 2**63, 10**30, -(2**40)]),
    st.floats(-10, 10),
    st.sampled_from([1e-300, 1e300]),
)
KNOWN = sorted(
    {
        item
        for key in common.KEYS.values()
        if isinstance(key.default, str)
        for item in key.default.split(",")
    }
    | {"bfloat16", "cosine", "exact", "pixels", "zero", "lbfgs", "views", "balanced", "cls:99"}
    | {"sfm", "clp", "soft", "1,2"}
)
VALUES = st.one_of(NUMBERS.map(str), st.sampled_from(WORDS), st.sampled_from(KNOWN), st.text())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.dictionaries(st.sampled_from(sorted(common.KEYS)), VALUES, max_size=3))
@example(changes={"images.crop": "0"})
@example(changes={"augment.scale_min": "0.9", "augment.scale_max": "0.1"})
@example(changes={"steps": "10000000", "copies": "10000000"})
def test_any_value_is_taken_or_refused_with_one_line(changes, capsys, monkeypatch):
    made = []

    def check(config, *_):
        common.check(config)
        task = make_recipe(config, 10, config.images.crop or 32).task
        assert task.parametrisation.resolution >= task.crop > 0
        assert task.num_views > 0
        made.append(task)

    monkeypatch.setattr(launch, "run", check)
    # config.deterministic adds to them.
    monkeypatch.setenv("XLA_FLAGS", "")
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    code = launch.main(["launch.py", "--config=configs/quickstart.py", "--workdir=x", *arguments])
    said = capsys.readouterr().err
    if made:
        assert (code, said) == (0, "")
    else:
        assert code == 2
        assert re.fullmatch(r"error: [^\n]+\n", said), said
