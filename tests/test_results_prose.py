"""What docs/results.md says in words has the numbers of the pages that it links to."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tools import answer_photos

DOCS = Path(__file__).parents[1] / "docs"
PROSE = " ".join((DOCS / "results.md").read_text().replace("**", "").split())

_SOURCE = ("imagenette_real_source", "lgm, exact")
_WHERE = ("same backbone", "other backbones")
_OBJECTIVES = ("clp", "sfm", "lgm")


def page(name: str) -> str:
    return (DOCS / "results" / f"{name}.md").read_text()


def cell(of: str, row: str, column: str, under: str = "") -> str:
    """Returns a cell of the first table of a page whose heading ends so and that has both."""
    sections = re.split(r"^## ", page(of), flags=re.M)
    for section in sections:
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        if not section.partition("\n")[0].endswith(under) or not lines:
            continue
        columns, _, *rows = (line.strip("| ").split(" | ") for line in lines)
        cells = {each[0]: dict(zip(columns, each, strict=False)) for each in rows}
        if column in cells.get(row, ()):
            return cells[row][column]
    raise LookupError(f"{of} has no {row} by {column} under {under}")


def mean(*place: str) -> float:
    return float(cell(*place).split()[0])


def spread(*place: str) -> str:
    """Returns a mean and its deviation over distillation seeds, without that over probe runs."""
    return cell(*place).partition(" (")[0]


def of_run(experiment: str, run: str, evaluated: str, method: str = "distilled") -> float:
    """Returns the accuracy of a row of one run, not rounded."""
    runs = json.loads((DOCS / "results" / "runs" / f"{experiment}.json").read_text())["runs"]
    return runs[run]["results"]["probe"][evaluated][method]["top1_mean"]


def signed(question: int, difference: str, backbone: str) -> tuple[str, str, str]:
    """Returns a difference of the answers on photos, its error, and the answer."""
    text = page("photos_answers")
    (found,) = re.findall(
        rf"\| {question} \| {re.escape(difference)} \| {backbone} "
        r"\| ([+-][\d.]+) \| ([\d.]*) \| (\S+) \|",
        text,
    )
    return found


def answer(question: int, difference: str, backbone: str) -> tuple[str, str]:
    """Returns a difference and its error of the answers on photos, without signs."""
    difference, error, _ = signed(question, difference, backbone)
    return difference.lstrip("+-"), error


def recipe() -> list[float]:
    """Returns the accuracies of our recipe on P, by seed."""
    runs = json.loads((DOCS / "photos_recipe.json").read_text())
    assert [run["seed"] for run in runs] == [0, 1, 2]
    return [run["accuracy"][answer_photos.P]["distilled"]["top1_mean"] for run in runs]


def accuracy_of_recipe() -> answer_photos.Accuracy:
    """Returns their mean, with an error by the rule of docs/photos.md."""
    mean, std = float(np.mean(recipe())), float(np.std(recipe(), ddof=1))
    return answer_photos.Accuracy.over_seeds(mean, std, seeds=3)


def answers() -> answer_photos.Answers:
    return answer_photos.Answers(answer_photos.read(DOCS / "results" / "runs"))


def said() -> dict[str, list[str]]:
    """Returns parts of the text, with numbers from elsewhere, by subject."""
    p, s, c, d, m = (
        "vit_tiny_patch16_224",
        "moco_vit_112",
        "digits_contrastive",
        "digits_distilled",
        "digits_masked",
    )
    ours = json.loads((DOCS / "gallery" / "imagenette_lgm.json").read_text())["accuracy"][p]
    seeds = recipe()
    ahead = accuracy_of_recipe() - answers().best_real("table1", p)
    exact = mean(*_SOURCE, p)
    apart = signed(1, "the same, with 10 copies, own backbone", "P")
    more = [
        of_run("imagenette_figure3", f"given_{p}_copies10_seed{seed}", p)
        - of_run("imagenette_table2", f"given_{p}_seed{seed}", p)
        for seed in range(3)
    ]
    # What one seed was tried with is compared to the same seed.
    three = f"given_{p}_seed0"
    first = {on: of_run("imagenette_table2", three, on) for on in (p, s)}
    photos = of_run("imagenette_real_source", f"given_{p}_exact_seed0", p) - first[p]
    steps = [of_run("photos_steps", three, on) - first[on] for on in (p, s)]
    behind = of_run("imagenette_table1", three, p, "centroids") - first[p]
    typical = ("typical real", p)
    random = cell("imagenette_table1", "random real", p)
    real = {row: mean("imagenette_table1", row, p) for row in ("typical real", "all real")}
    seconds = [
        float(cell("imagenette_real_source", f"lgm, {source}", "ms a step, each run by itself"))
        / 1000
        for source in ("exact", "stream")
    ]
    means = "that class means explain"
    large = ("imagenette_class_means", "1", p, means)
    # On average and in the worst group, for three backbones each.
    groups = [float(x) for x in re.findall(r"by \+([\d.]+)", page("table4"))]
    augment = re.findall(r"without augment it loses ([\d.]+)", page("table3"))
    pyramid = re.findall(r"worth (\S+) there and (\S+) here", page("table3"))
    part = "full - without "
    transfer = [
        answer(number, f"{part}{each}", "S to P")
        for number, each in ((5, "augment"), (6, "pyramid"), (7, "decorrelate"))
    ]
    both, pairs = f"{c} + {d}", "several backbones at once"
    return {
        "ten photos": [
            f"in each step, 400 steps | {np.mean(seeds):.1f} ± {np.std(seeds, ddof=1):.1f} |",
            f"ahead in each of three seeds, by {ahead.value:.1f} ± {ahead.error:.1f} points, which "
            f"is just {ahead.verdict}",
            f"300 steps of 10 augmentations | {spread('imagenette_figure3', '10', p)} |",
            f"all photos in each step instead of 30 | {exact} |",
            f"typical real photos | {real['typical real']} |",
            f"look-alike real photos | {ours['neighbors']['top1_mean']:.1f} |",
            f"900 steps of 3 augmentations | {mean('photos_steps', p, p)} |",
            "teach P {:.1f} points more, and S, for which they were not made, {:.1f}".format(
                *steps
            ),
            "seeds differ by {} and {}".format(
                *(spread("imagenette_table2", p, on).split()[-1] for on in (p, s))
            ),
            f"300 steps of 3 augmentations | {spread('imagenette_table1', 'distilled', p)} |",
            f"300 steps of 1 augmentation | {spread('imagenette_figure3', '1', p)} |",
            f"ten random real photos | {random.replace('(', '(std ')[:-1]} over 5 draws) |",
            f"all 7,575 photos | {real['all real']} |",
            "10 instead of 3 bring {:.1f}, {:.1f} and {:.1f} points with seeds 0, 1".format(*more),
            f"all photos in each step with 3 bring {photos:.1f} with seed 0.",
            "are level with typical photos ({} ± {};".format(*apart),
            f"step took {seconds[0]:.1f} s instead of {seconds[1]:.1f}",
            "level on P, too ({} ± {}; with all photos in each step {} to {}, one seed)".format(
                *apart[:2], exact, real["typical real"]
            ),
            "and {} ± {} points on S, {} by the plan's rule".format(
                *signed(1, "the same, with 10 copies, own backbone", "S")
            ),
        ],
        "objectives": [
            " | ".join(
                [f"| `{name}`", *(spread("objectives", name, on, "equal steps") for on in _WHERE)]
            )
            for name in ("lgm", "sfm", "clp")
        ],
        "parts, on digits": [
            "yes, {} points on the same backbone, {} on others".format(*augment),
            *(f"worth {here} points on the same and none on" for _, here in pyramid),
        ],
        "parts, on photos": [
            "gains {} ± {} points on P itself and loses {} ± {} from P to S".format(
                *answer(4, f"{part}augment", "P"), *answer(5, f"{part}augment", "P to S")
            ),
            "gains {} ± {} on P and loses {} ± {} from P to S".format(
                *answer(7, f"{part}decorrelate", "P"), *answer(7, f"{part}decorrelate", "P to S")
            ),
            "loses {} ± {} on S itself".format(*answer(7, f"{part}decorrelate", "S")),
            "without the pyramid it loses {} ± {} there, and {} ± {} on P.".format(
                *answer(6, f"{part}pyramid", "P to S"), *answer(6, f"{part}pyramid", "P")
            ),
            "From S to P it loses {} to {} ± {} without any".format(
                min(lost[0] for lost in transfer), *max(transfer)
            ),
            "on P it is worth {} ± {} points on the same and {} ± {} on the other; on S -{} ± {} "
            "and {} ± {} |".format(
                *itertools.chain(
                    *(answer(6, f"{part}pyramid", pair) for pair in ("P", "P to S", "S", "S to P"))
                )
            ),
        ],
        "pairs": [
            f"| {name} | " + " | ".join(spread("objectives", row, on, pairs) for on in (c, d, m))
            for name, row in ((f"`{c}`", c), (f"`{d}`", d), ("both", both))
        ],
        "transfer": [
            f"images of S have {spread('imagenette_table2_s', s, p)} % on P, random photos "
            f"{mean('imagenette_table2_s', 'random real', p)}; images of P do with ten "
            f"augmentations, {spread('imagenette_figure3', '10', s)} on S, and hardly with three, "
            f"{spread('imagenette_table2', p, s)}, random photos "
            + cell("imagenette_table2", "random real", s).replace("(", "(std ")[:-1]
            + " over 5 draws",
            f"r is {cell('table6', 'mutual 10-NN alignment', 'Pearson r').split()[0]}",
        ],
        "real images": [
            "{} ± {} points behind typical".format(
                *answer(1, "distilled - best real, own backbone", "P")
            ),
            f"{mean('photos_probe', *typical) - mean('photos_probe', 'distilled', p):.1f} points "
            f"behind typical photos, not {behind:.1f}",
            "by {:.0f} on P and {:.0f} on S".format(
                *(
                    float(answer(3, "own images - the other's", pair)[0])
                    for pair in ("S to P", "P to S")
                )
            ),
            "level with them on S (-{} ± {})".format(
                *answer(1, "distilled - best real, own backbone", "S")
            ),
            f"S is weak: {mean('imagenette_table1_s', 'all real', s)} %",
        ],
        "edges": [
            "half on P and on S, on average at {:.2f} and {:.2f} of the edge".format(
                *(
                    mean(f"imagenette_figure4{end}", "distilled", "along class / 95 % edge")
                    for end in ("", "_s")
                )
            ),
        ],
        "groups": [
            f"by {min(groups[:3])} to {max(groups[:3])} points on average and {min(groups[3:])} to "
            f"{max(groups[3:])} in the worst group",
            f"on P {mean('imagenette_table4', 'distilled', p, 'average')} % on average, look-alike "
            f"photos {mean('imagenette_table4', 'look-alike real', p, 'average')}, and in the "
            f"worst group {mean('imagenette_table4', 'distilled', p, 'worst group')}, random "
            f"photos {mean('imagenette_table4', 'random real', p, 'worst group')}",
        ],
        "augmentations": [
            f"hardly, {mean('figure3', '20', c) - mean('figure3', '1', c):.1f} points from 1 to 20",
            "by {} ± {} points from 1 to 10 on P and {} ± {} on S".format(
                *answer(8, "10 copies - 1", "P"), *answer(8, "10 copies - 1", "S")
            ),
            "from P to S by {} ± {}, {}, and from S to P by {} ± {}, {} (".format(
                *answer(8, "10 copies - 1", "P to S"),
                signed(8, "10 copies - 1", "P to S")[2],
                *answer(8, "10 copies - 1", "S to P"),
                signed(8, "10 copies - 1", "S to P")[2],
            ),
        ],
        "images per class": [
            "{}, {}, {} and {} % with 1, 2, 5 and 10 a class".format(
                *(mean("ipc", count, "distilled") for count in ("1", "2", "5", "10"))
            ),
            f"typical real digits go from {mean('ipc', '1', 'typical real')} to "
            f"{mean('ipc', '10', 'typical real')} and random ones from "
            f"{mean('ipc', '1', 'random real')} to {mean('ipc', '10', 'random real')}",
        ],
        "objectives and teachers, on photos": [
            "`clp` has {} % on S, `sfm` {}, `lgm` {}".format(
                *(mean("imagenette_objectives", name, "same backbone") for name in _OBJECTIVES)
            ),
            "bring `lgm` {} ± {} points on S".format(
                *answer(11, "distilled: kd - hard labels", "S")
            ),
            "ten random photos {} ± {}".format(*answer(11, "random: kd - hard labels", "S")),
            "costs `lgm` {} ± {}".format(*answer(11, "distilled: ci - hard labels", "S")),
        ],
        "soft labels": [
            f"digits, {spread('objectives', 'soft labels', c)} for "
            f"{spread('objectives', 'hard labels', c)}",
            "bring {:.1f} points on their own".format(
                mean("objectives", "soft labels", c) - mean("objectives", "hard labels", c)
            ),
        ],
        "class means": [
            "99.9 % of it or more on digits and {:.1f} % on photos".format(
                100 * mean("imagenette_class_means", "0.01", p, means)
            ),
            "they explain {:.0f}, {:.0f} and {:.0f} % on digits".format(
                *(100 * mean("class_means", "1", on, means) for on in (c, d, m))
            ),
            f"zero is ({100 * mean(*large):.0f} %, std "
            f"{100 * float(cell(*large).split()[-1]):.0f} over 20 heads; P",
        ],
        "heads of 1": [
            f"teach P {mean('photos_heads', p, p)} %, with 0.01 {first[p]:.1f} (the same seed"
        ],
        "closed-form probe": [
            f"at {mean('clp', '0.02', '0.1')} with one distillation seed",
            f"takes, have {mean('clp', '0.02', '0.3')}",
            "a ridge of 2 costs {:.0f} to {:.0f} points".format(
                *(mean("clp", "0.02", "0.1") - mean("clp", "2", at) for at in ("0.03", "0.3"))
            ),
        ],
    }


@pytest.mark.parametrize("subject", said())
def test_a_number_in_words_is_that_of_its_page(subject):
    for part in said()[subject]:
        assert part in PROSE


def test_the_readme_has_the_numbers_of_the_published_step():
    p = "vit_tiny_patch16_224"
    three, ten = mean("imagenette_table1", "distilled", p), mean("imagenette_figure3", "10", p)
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    assert f"has {three} % with three augmentations and {ten} with ten" in readme
    seeds = recipe()
    assert f"{np.mean(seeds):.1f} ± {np.std(seeds, ddof=1):.1f} over three seeds" in readme


def test_the_plan_has_the_accuracies_of_the_recipe():
    text = " ".join((DOCS / "photos.md").read_text().split())
    assert "seeds 0, 1 and 2: {:.1f}, {:.1f} and {:.1f} % on P".format(*recipe()) in text


def test_the_trainings_of_s_are_as_recorded():
    text = (DOCS / "photos.md").read_text()
    for of in json.loads((DOCS / "photos_backbones.json").read_text()):
        held_out = ", ".join(map(str, of["held_out_linear_by_epoch"].values()))
        top1 = of["results"]["probe"][of["backbone"]]["full"]["top1_mean"]
        method = of["pretraining"].partition("--method=")[2].partition(" --learning_rate")[0]
        assert f"`--method={method}` | {held_out} | {top1:.1f} |" in text
