"""The answers to the questions on photos, of numbers made by hand."""

import math

import pandas as pd
import pytest

from lgm_jax.experiments.frame import WORST
from lgm_jax.experiments.published import TOP1
from tools.answer_photos import Accuracy, Answers, P, S, page

COLUMNS = ("backbone", "evaluated", "method", "variant", "seed", "run", "value")


def frame(*rows):
    return pd.DataFrame(rows, columns=COLUMNS).assign(metric=TOP1)


def images(source, evaluated, values, variant=""):
    return [
        (source, evaluated, "distilled", variant, seed, run, value + off)
        for seed, value in enumerate(values)
        for run, off in enumerate((-1.0, 1.0))
    ]


ANSWERS = Answers(
    {
        "table1": frame(
            ("real", P, "random", "", None, 0, 50.0),
            ("real", P, "random", "", None, 1, 70.0),
            (P, P, "centroids", "", 0, 0, 80.0),
            (P, P, "centroids", "", 1, 0, 80.0),
        ),
        "table2": frame(*images(P, P, (88.0, 92.0)), *images(P, S, (60.0,))),
        "table3": frame(*images(P, P, (90.0,)), *images(P, P, (92.0,), "no-augment")),
        "table4": pd.concat(
            [
                frame(*images(P, P, (60.0,))),
                frame(*images(P, P, (20.0,))).assign(metric=WORST),
            ]
        ),
    }
)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        *[(2.1, 1, "yes"), (2, 1, "undecided"), (-2, 1, "undecided"), (-2.1, 1, "**no**")],
        (9, math.nan, "undecided"),
    ],
)
def test_two_standard_errors_decide(value, error, verdict):
    assert Accuracy(value, error).verdict == verdict


def test_an_error_is_of_the_photos_and_of_the_seeds():
    own = ANSWERS.accuracy("table2", (P, P))
    assert own.value == 90
    # Two seeds, four points apart.
    assert own.error == pytest.approx(math.sqrt(90 * 10 / 3925 + 8 / 2))
    drawn = ANSWERS.accuracy("table1", (P, P), "random")
    assert (drawn.value, drawn.error) == (60, pytest.approx(math.sqrt(60 * 40 / 3925 + 200 / 2)))
    # One seed alone has the headline's spread, and a headline of one the largest of the others.
    # Nothing tells the spread without that experiment.
    alone = Answers({"table3": ANSWERS.frames["table3"]}).accuracy("table3", (P, P))
    assert (alone.value, math.isnan(alone.error)) == (90, True)
    other = ANSWERS.accuracy("table2", (P, S))
    assert other.error == pytest.approx(math.sqrt(60 * 40 / 3925 + 8))
    less = ANSWERS.accuracy("table3", (P, P), variant="no-augment")
    assert less.error == pytest.approx(math.sqrt(92 * 8 / 3925 + 8))
    # Photos with places that mislead are fewer, in all and in a group.
    groups = ANSWERS.accuracy("table4", (P, P))
    assert groups.error == pytest.approx(math.sqrt(60 * 40 / 712 + 8))
    worst = ANSWERS.accuracy("table4", (P, P), metric=WORST)
    assert worst.error == pytest.approx(math.sqrt(20 * 80 / 178 + 8))


def test_questions_take_the_best_real_images_and_say_what_was_not_run():
    lines = page(ANSWERS).splitlines()
    assert any(
        line.startswith("| 1 | distilled - best real, own backbone | P | +10.0 |") for line in lines
    )
    assert any(line.startswith("| 4 | full - without augment | P | -2.0 |") for line in lines)
    assert "| 1 | distilled - best real, own backbone | S | | | not run |" in lines
    numbers = [
        int(line.split("|")[1]) for line in lines if line[:3] in {f"| {i}" for i in range(10)}
    ]
    assert numbers == sorted(numbers)
    assert {1, 2, 3, 4, 5, 6, 7, 8, 10, 11} == set(numbers)
