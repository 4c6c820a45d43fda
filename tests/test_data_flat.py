"""Images in one folder, of which a table says the classes, groups and splits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import Dataset, load_dataset
from lgm_jax.errors import UserError

R = 8
ROWS = [{"file_name": f"{i}.png", "label": ("cat", "dog")[i % 2]} for i in range(12)]


def write(folder: Path, rows: Sequence[Mapping[str, str]], table: str = "metadata.csv") -> Path:
    """Images whose grey level is 20 times their number, and a table beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (R, R), (20 * int(path.stem),) * 3).save(path)
    write_table(folder / table, rows)
    return folder


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        return
    separator = "\t" if path.suffix == ".tsv" else ","
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def open_folder(folder: Path) -> Dataset:
    return load_dataset("folder", folder=str(folder), resolution=R)


def shown(dataset: Dataset, split: str) -> dict[int, str]:
    """From the numbers of images, which are on them, to their classes."""
    members = dataset.splits[split]
    images = members.load(np.arange(len(members.labels)))
    numbers = np.round(images[:, 4, 4, 0] / 20).astype(int).tolist()
    classes = [dataset.class_names[label] for label in members.labels]
    return dict(zip(numbers, classes, strict=True))


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.tsv", "metadata.jsonl", "labels.csv"])
def test_a_table_labels_images_that_are_split_here(tmp_path, table):
    dataset = open_folder(write(tmp_path / "set", ROWS, table))
    everything = {n: name for split in dataset.splits for n, name in shown(dataset, split).items()}
    assert everything == {i: ("cat", "dog")[i % 2] for i in range(12)}
    assert {n: len(s.labels) for n, s in dataset.splits.items()} == {
        "train": 8,
        "val": 2,
        "test": 2,
    }
    assert f"set: {table} says which image is of which class" in dataset.notes


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_splits_and_groups_of_a_table(tmp_path, table):
    extra = [{"split": ("train", "Testing")[i >= 8], "group": f"g{i % 3}"} for i in range(12)]
    rows = [row | more for row, more in zip(ROWS, extra, strict=True)]
    dataset = open_folder(write(tmp_path, rows, table))
    assert sorted({**shown(dataset, "train"), **shown(dataset, "val")}) == list(range(8))
    assert shown(dataset, "test") == {8: "cat", 9: "dog", 10: "cat", 11: "dog"}
    groups = dataset.splits["test"].groups
    # In the order of their names: 10, 11, 8, 9.
    assert [dataset.group_names[group] for group in groups] == ["g1", "g2", "g2", "g0"]


def test_of_several_columns_of_files_that_which_names_them_counts(tmp_path):
    folder = write(tmp_path / "set", ROWS)
    rows = [
        {"image_id": str(900 + i), "image_path": row["file_name"], "label": row["label"]}
        for i, row in enumerate(ROWS)
    ]
    write_table(folder / "metadata.csv", rows)
    with (folder / "metadata.csv").open("r+") as file:
        text = file.read()
        file.seek(0)
        # An empty line is no header.
        file.write("\n" + text)
    dataset = open_folder(folder)
    everything = {n: name for split in dataset.splits for n, name in shown(dataset, split).items()}
    assert everything == {i: ("cat", "dog")[i % 2] for i in range(12)}


def test_one_folder_of_images_below_the_table(tmp_path):
    folder = write(tmp_path / "set" / "images", ROWS)
    (folder / "metadata.csv").rename(tmp_path / "set" / "labels.csv")
    dataset = open_folder(tmp_path / "set")
    assert list(dataset.class_names) == ["cat", "dog"]
    assert (dataset.name, sum(len(split.labels) for split in dataset.splits.values())) == (
        "set",
        12,
    )


def test_folders_of_splits_with_a_table_each_or_none(tmp_path):
    write(tmp_path / "train", ROWS[:8], "metadata.jsonl")
    write(tmp_path / "validation", ROWS[8:], "metadata.jsonl")
    write(tmp_path / "test", ROWS[:2]).joinpath("metadata.csv").unlink()
    dataset = open_folder(tmp_path)
    assert shown(dataset, "test") == {8: "cat", 9: "dog", 10: "cat", 11: "dog"}
    assert any("test images have no labels and are ignored" in note for note in dataset.notes)


def test_numbers_are_classes_in_their_order(tmp_path):
    rows = [{"file_name": f"{i}.png", "label": str(10 - i % 2)} for i in range(4)]
    folder = write(tmp_path / "set", rows)
    assert list(open_folder(folder).class_names) == ["9", "10"]


def test_files_that_are_not_there_are_said(tmp_path):
    folder = write(tmp_path, ROWS)
    write_table(folder / "metadata.csv", [*ROWS, {"file_name": "77.png", "label": "cat"}])
    assert any("names 1 files that do not exist: 77.png" in n for n in open_folder(folder).notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:-1], "metadata.csv says no class of 11.png"),
        ([row | {"more": "x"} | {"label": ""} for row in ROWS], "says no class of"),
        ([row | {"split": "left"} for row in ROWS], "has splits left: one must be called train"),
        (
            [row | {"split": "train" if i else ""} for i, row in enumerate(ROWS)],
            "the table says no split of 0.png",
        ),
        (
            [row | {"group": "g" if i else ""} for i, row in enumerate(ROWS)],
            "the table says the groups of some images only",
        ),
    ],
)
def test_what_a_table_lacks_is_one_line(tmp_path, rows, message):
    folder = write(tmp_path, ROWS)
    write_table(folder / "metadata.csv", rows)
    with pytest.raises(UserError, match=message) as error:
        open_folder(folder)
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_json_is_named(tmp_path):
    folder = write(tmp_path, ROWS, "metadata.jsonl")
    with (folder / "metadata.jsonl").open("a") as table:
        table.write("{no}\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 13: not JSON"):
        open_folder(folder)


def test_class_folders_are_read_whatever_table_lies_beside(tmp_path):
    rows = [{"file_name": f"{row['label']}/{row['file_name']}", "label": "x"} for row in ROWS]
    assert list(open_folder(write(tmp_path, rows)).class_names) == ["cat", "dog"]


def write_twice(folder: Path) -> Path:
    """Images of the same names in both splits, and the labels of `train` above them."""
    write(folder / "train", ROWS[:8], "metadata.csv").joinpath("metadata.csv").rename(
        folder / "train.csv"
    )
    write(folder / "test", ROWS[:8]).joinpath("metadata.csv").unlink()
    return folder


def test_a_table_called_after_a_split_labels_no_other(tmp_path):
    dataset = open_folder(write_twice(tmp_path / "set"))
    assert len(dataset.splits["test"].labels) < 8
    assert any("test images have no labels and are ignored" in note for note in dataset.notes)
    # Each table has its own images, though both name all.
    swapped = [row | {"label": ("dog", "cat")[i % 2]} for i, row in enumerate(ROWS[:8])]
    write_table(tmp_path / "set" / "test_labels.csv", swapped)
    dataset = open_folder(tmp_path / "set")
    assert shown(dataset, "test") == {i: ("dog", "cat")[i % 2] for i in range(8)}
    trained = {**shown(dataset, "train"), **shown(dataset, "val")}
    assert trained == {i: ("cat", "dog")[i % 2] for i in range(8)}


def test_a_sample_of_answers_labels_nothing(tmp_path):
    folder = write_twice(tmp_path / "set")
    made_up = [row | {"file_name": f"test/{row['file_name']}", "label": "cat"} for row in ROWS[:8]]
    write_table(folder / "sampleSubmission.csv", made_up)
    notes = open_folder(folder).notes
    assert any("test images have no labels and are ignored" in note for note in notes)


def rows_by_path():
    """Rows of a table above both splits."""
    return [
        row | {"file_name": f"{split}/{row['file_name']}"}
        for split in ("train", "test")
        for row in ROWS[:8]
    ]


def test_a_table_called_after_a_split_may_label_others_by_their_paths(tmp_path):
    folder = write_twice(tmp_path / "set")
    write_table(folder / "train.csv", rows_by_path())
    assert len(open_folder(folder).splits["test"].labels) == 8


def test_a_table_of_all_splits_says_which_image_it_means(tmp_path):
    folder = write_twice(tmp_path / "set")
    (folder / "train.csv").rename(folder / "labels.csv")
    with pytest.raises(UserError, match=r"images of several splits are called 0\.png: say which"):
        open_folder(folder)
    write_table(folder / "labels.csv", rows_by_path())
    assert len(open_folder(folder).splits["test"].labels) == 8


def test_a_column_without_a_name_says_nothing(tmp_path):
    folder = write(tmp_path / "set", ROWS)
    # As pandas writes it: the first column is the index.
    lines = [f"{i},{row['file_name']},{row['label']}" for i, row in enumerate(ROWS)]
    (folder / "metadata.csv").write_text("\n".join([",file_name,label", *lines]))
    dataset = open_folder(folder)
    assert (dataset.group_names, dataset.class_names) == ([], ["cat", "dog"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        # Two classes have one name: ImageNet has two cranes.
        ([(i % 3, ("crane", "crane", "dog")[i % 3]) for i in range(12)], "is ambiguous"),
        ([(i % 2, ("cat", "dog", "cow")[i % 3]) for i in range(12)], "is ambiguous"),
        ([(["a", "b"], "") for _ in range(12)], "says no class of 0.png"),
    ],
)
def test_a_name_of_two_labels_is_no_class(tmp_path, labels, message):
    folder = write(tmp_path / "set", ROWS, "metadata.jsonl")
    rows = [
        {"file_name": row["file_name"], "label": label, "class_name": name}
        for row, (label, name) in zip(ROWS, labels, strict=True)
    ]
    write_table(folder / "metadata.jsonl", rows)
    with pytest.raises(UserError, match=message):
        open_folder(folder)


def test_numbers_that_count_names_are_left_to_them(tmp_path):
    rows = [row | {"label": i % 2, "class_name": row["label"]} for i, row in enumerate(ROWS)]
    folder = write(tmp_path / "set", rows, "metadata.jsonl")
    assert open_folder(folder).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file_name,Label,label", "metadata.csv has two columns 'label'"),
        # A comma outside of quotes.
        ("file_name,label", "metadata.csv, line 2: more cells than columns"),
    ],
)
def test_columns_that_do_not_fit_their_header_are_refused(tmp_path, header, message):
    folder = write(tmp_path / "set", ROWS)
    lines = [f"{row['file_name']},{row['label']}, more" for row in ROWS]
    (folder / "metadata.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(UserError, match=message):
        open_folder(folder)
