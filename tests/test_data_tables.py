"""Hugging Face's sets as other programs than `datasets` write them, and as splits differ."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lgm_jax import data
from lgm_jax.data.dataset import Dataset
from lgm_jax.errors import UserError
from tests.photos import png

PAIR = ("cat", "dog")
# A column of numbers and the names that they count.
TRAIN = {"label": ([0, 1, 0, 1], ["cat", "dog"])}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class TestTables:
    """Hugging Face's sets, as other programs than `datasets` write them."""

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path, monkeypatch) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))

    def table(self, files):
        import pyarrow

        labels = [PAIR[i % 2] for i in range(10)]
        return pyarrow.table({"image": files, "label": labels})

    @pytest.mark.parametrize("kind", ["bytes", "bytes and path"])
    def test_images_without_a_type_are_known_by_their_bytes(self, tmp_path, kind):
        from pyarrow import parquet

        files = [png(40 + 40 * (i % 2)) for i in range(10)]
        records = [{"bytes": file, "path": None} for file in files]
        (tmp_path / "set").mkdir()
        table = self.table(files if kind == "bytes" else records)
        parquet.write_table(table, tmp_path / "set" / "train.parquet")
        dataset = data.load_dataset("huggingface", folder=str(tmp_path / "set"), resolution=8)
        assert dataset.class_names == list(PAIR)
        split = dataset.splits["test"]
        levels = split.load(np.arange(len(split.labels)))[:, 0, 0, 0]
        assert levels.tolist() == [40 + 40 * label for label in split.labels.tolist()]

    def test_splits_saved_one_by_one_are_splits(self, tmp_path):
        import datasets

        table = datasets.Dataset(self.table([png(i) for i in range(10)]))
        table = table.cast_column("image", datasets.Image())
        table.save_to_disk(tmp_path / "set" / "train")
        table.select(range(4)).save_to_disk(tmp_path / "set" / "test")
        dataset = data.load_dataset("huggingface", folder=str(tmp_path / "set"), resolution=8)
        assert len(dataset.splits["test"].labels) == 4

    def test_links_to_nowhere_are_named_and_hidden_files_left_out(self, tmp_path):
        from pyarrow import parquet

        root = tmp_path / "set"
        (root / ".hidden").mkdir(parents=True)
        for place in (root, root / ".hidden"):
            parquet.write_table(self.table([png(i) for i in range(10)]), place / "train.parquet")
        opened = data.load_dataset("huggingface", folder=str(root), resolution=8)
        assert not [note for note in opened.notes if "hidden" in note]
        (root / "test.parquet").symlink_to("nowhere")
        with pytest.raises(UserError, match=r"links that lead nowhere, test\.parquet: fetch"):
            data.load_dataset("huggingface", folder=str(root), resolution=8)

    def test_several_configurations_are_named(self, tmp_path):
        from pyarrow import parquet

        root, card = tmp_path / "set", "---\nconfigs:\n"
        for name in ("plain", "other"):
            (root / name).mkdir(parents=True)
            parquet.write_table(self.table([png(1)] * 10), root / name / "train.parquet")
            card += f"- config_name: {name}\n  data_files: {name}/*.parquet\n"
        (root / "README.md").write_text(f"{card}---\n")
        with pytest.raises(
            UserError, match=r"several configurations \(plain, other\): give a fold"
        ):
            data.load_dataset("huggingface", folder=str(root), resolution=8)


class TestColumnsOfSplits:
    """Hugging Face's sets whose splits call or number their labels differently."""

    def save(self, root: Path, **splits: dict[str, list[Any] | tuple[list[int], list[str]]]) -> str:
        """Four images a split, grey by their number; columns of names, numbers, or both."""
        datasets = pytest.importorskip("datasets")
        tables = {}
        for split, columns in splits.items():
            files = {"image": [{"bytes": png(20 * i), "path": None} for i in range(4)]}
            plain = {key: c if isinstance(c, list) else c[0] for key, c in columns.items()}
            table = datasets.Dataset.from_dict(files | plain)
            table = table.cast_column("image", datasets.Image())
            for key, column in columns.items():
                if isinstance(column, tuple):
                    table = table.cast_column(key, datasets.ClassLabel(names=column[1]))
            tables[split] = table
        datasets.DatasetDict(tables).save_to_disk(root / "pets")
        return str(root / "pets")

    def open(self, folder: str, **options: Any) -> Dataset:
        return data.load_dataset(
            "huggingface", folder=folder, resolution=8, val_fraction=0.0, **options
        )

    def shown(self, dataset: Dataset, split: str = "test") -> list[str]:
        """The class of each image, in the order of their levels."""
        members = dataset.splits[split]
        levels = members.load(np.arange(len(members.labels)))[:, 0, 0, 0]
        return [dataset.class_names[members.labels[i]] for i in np.argsort(levels)]

    @pytest.mark.parametrize(
        ("key", "column"),
        [
            ("labels", ([0, 1, 1, 1], ["dog", "cat"])),
            ("breed", ([0, 1, 1, 1], ["dog", "cat"])),
            ("Class", ["dog", "cat", "cat", "cat"]),
            ("answer", ["dog", "cat", "cat", "cat"]),
            ("target", [1, 0, 0, 0]),
        ],
    )
    def test_a_split_may_call_its_labels_otherwise(self, tmp_path, key, column):
        # What says nothing of classes is no candidate.
        test = {key: column, "file": list("abcd"), "size": [1, 2, 3, 4]}
        dataset = self.open(self.save(tmp_path, train=TRAIN, test=test))
        assert self.shown(dataset) == ["dog", "cat", "cat", "cat"]
        assert self.shown(dataset, "train") == ["cat", "dog", "cat", "dog"]
        assert f"pets: the test labels are those of the column {key}" in dataset.notes

    def test_parquet_files_may_have_different_columns_too(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
        test = {"breed": ([0, 1, 1, 1], ["dog", "cat"])}
        saved = datasets.load_from_disk(self.save(tmp_path, train=TRAIN, test=test))
        for split, table in saved.items():
            (tmp_path / "files").mkdir(exist_ok=True)
            table.to_parquet(tmp_path / "files" / f"{split}.parquet")
        dataset = self.open(str(tmp_path / "files"))
        assert self.shown(dataset) == ["dog", "cat", "cat", "cat"]
        assert "files: the test labels are those of the column breed" in dataset.notes

    def test_parquet_files_of_a_split_name_the_same_classes(self, tmp_path, monkeypatch):
        """`datasets` would take the names of the first for all."""
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
        other = {"label": ([0, 1, 0, 1], ["dog", "cat"])}
        saved = datasets.load_from_disk(self.save(tmp_path, a=TRAIN, b=other, c=TRAIN))
        folders = [tmp_path / name for name in ("same", "swapped")]
        for folder, parts in zip(folders, ("ac", "ab"), strict=True):
            folder.mkdir()
            for n, part in enumerate(parts):
                saved[part].to_parquet(folder / f"train-{n:05d}-of-00002.parquet")
        assert len(self.open(str(folders[0])).splits["test"].labels) > 0
        with pytest.raises(UserError, match="names the classes of label otherwise than"):
            self.open(str(folders[1]))

    def test_of_two_columns_one_is_asked_for(self, tmp_path):
        test = {
            "coarse": ([0, 0, 0, 1], ["pet", "stray"]),
            "fine": ([1, 0, 0, 0], ["cat", "dog"]),
        }
        folder = self.save(tmp_path, train=TRAIN, test=test)
        with pytest.raises(UserError) as error:
            self.open(folder)
        assert str(error.value) == (
            "pets has no column label in its test split, and may have labels in coarse, fine: set "
            "--config.data.label=label,coarse or another"
        )
        dataset = self.open(folder, label="label,fine")
        assert self.shown(dataset) == ["dog", "cat", "cat", "cat"]
        with pytest.raises(
            UserError, match=r"no class of its test images \(pet, stray\) is one of"
        ):
            self.open(folder, label="label,coarse")

    def test_without_any_the_split_is_ignored_and_what_helps_is_said(self, tmp_path):
        test = {"answer": [0, 1, 1, 1]}
        folder = self.save(tmp_path, train=TRAIN | {"id": list(range(4))}, test=test)
        dataset = self.open(folder)
        assert len(dataset.splits["test"].labels) == 2
        (note,) = [note for note in dataset.notes if "ignored" in note]
        assert note == (
            "pets: the test images have no labels and are ignored: there is no column label; if "
            "answer has them, set --config.data.label=label,answer"
        )
        chosen = self.open(folder, label="label,answer")
        assert self.shown(chosen) == ["cat", "dog", "dog", "dog"]

    def test_a_column_that_train_has_too_is_not_taken_for_labels(self, tmp_path):
        other = {"kind": ([0, 1, 0, 1], ["a", "b"])}
        folder = self.save(tmp_path, train=TRAIN | other, test=other)
        (note,) = [note for note in self.open(folder).notes if "ignored" in note]
        assert note.endswith("there is no column label")

    @pytest.mark.parametrize("numbers", [[1, 0, 0, 0], [1, 1, 1, 1]])
    def test_numbers_count_the_classes_that_train_names(self, tmp_path, numbers):
        dataset = self.open(self.save(tmp_path, train=TRAIN, test={"label": numbers}))
        assert self.shown(dataset) == [("cat", "dog")[number] for number in numbers]
        (note,) = [note for note in dataset.notes if "without names" in note]
        assert note.startswith("pets, test: labels are numbers without names, which count train's")
        assert note.endswith("1 is dog")

    @pytest.mark.parametrize("kind", ["saved", "parquet"])
    @pytest.mark.parametrize("plain", ["train", "test"])
    def test_numbers_of_one_split_count_the_names_of_the_other(
        self, tmp_path, monkeypatch, kind, plain
    ):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
        named = "test" if plain == "train" else "train"
        columns = {plain: {"label": [1, 0, 1, 1]}, named: {"label": ([0, 1, 1, 0], ["dog", "cat"])}}
        folder = Path(self.save(tmp_path, **columns))
        if kind == "parquet":
            for split, table in datasets.load_from_disk(folder).items():
                table.to_parquet(tmp_path / "files" / "pets" / f"{split}.parquet")
            folder = tmp_path / "files" / "pets"
        dataset = self.open(str(folder))
        assert self.shown(dataset, plain) == ["cat", "dog", "cat", "cat"]
        assert self.shown(dataset, named) == ["dog", "cat", "cat", "dog"]
        (note,) = [note for note in dataset.notes if "without names" in note]
        whose = "the held-out split" if plain == "train" else "train"
        assert note == (
            f"pets, {plain}: labels are numbers without names, which count {whose}'s classes: 0 is "
            "dog, 1 is cat"
        )

    def test_numbers_beyond_the_classes_are_refused(self, tmp_path):
        folder = self.save(tmp_path, train=TRAIN, test={"label": [1, 2, 1, 2]})
        with pytest.raises(UserError, match=r"from 1 to 2, but train has 2 classes: they must"):
            self.open(folder)

    def test_numbers_that_are_names_stay_names(self, tmp_path):
        train = {"label": ([0, 1, 0, 1], ["1", "0"])}
        dataset = self.open(self.save(tmp_path, train=train, test={"label": [0, 1, 1, 1]}))
        assert self.shown(dataset) == ["0", "1", "1", "1"]

    def test_images_may_be_called_otherwise(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        folder = self.save(tmp_path, train=TRAIN, test=TRAIN)
        both = datasets.load_from_disk(folder)
        both["test"] = both["test"].rename_column("image", "photo")
        both.save_to_disk(tmp_path / "other" / "pets")
        dataset = self.open(str(tmp_path / "other" / "pets"))
        assert self.shown(dataset) == ["cat", "dog", "cat", "dog"]
        assert "pets: the test images are those of the column photo" in dataset.notes


def test_tars_of_a_webdataset(tmp_path, monkeypatch):
    import tarfile

    datasets = pytest.importorskip("datasets")
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    # Whether other users of the class in this process would have all its decoders meanwhile.
    whole, split_generators = [], WebDataset._split_generators

    def split(builder, manager):
        whole.append("pth" in WebDataset.DECODERS)
        return split_generators(builder, manager)

    monkeypatch.setattr(WebDataset, "_split_generators", split)
    (tmp_path / "set").mkdir()
    for split, count in (("train", 6), ("test", 4)):
        with tarfile.open(tmp_path / "set" / f"{split}-0000.tar", "w") as tar:
            for i in range(count):
                # What PyTorch pickles is never opened.
                parts = {"png": png(40 + 40 * (i % 2)), "cls": str(i % 2).encode(), "pth": b"no"}
                for suffix, content in parts.items():
                    member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (tmp_path / "set" / "class_names.txt").write_text("cat\ndog\n")
    dataset = data.load_dataset("huggingface", folder=str(tmp_path / "set"), resolution=8)
    assert list(dataset.class_names) == list(PAIR)
    for split, count in (("test", 4), ("train", 4), ("val", 2)):
        members = dataset.splits[split]
        levels = members.load(np.arange(count))[:, 0, 0, 0]
        assert levels.tolist() == [40 + 40 * label for label in members.labels.tolist()]
    assert whole == [True]


@pytest.mark.parametrize("labelled_by", ["folders", "metadata"])
def test_imagefolders_of_the_hub(tmp_path, monkeypatch, labelled_by):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for split, count in (("train", 6), ("test", 4)):
        for i in range(count):
            folder = tmp_path / "set" / split / (PAIR[i % 2] if labelled_by == "folders" else "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(png(40 + 40 * (i % 2)))
            lines[split].append(json.dumps({"file_name": f"{i}.png", "label": PAIR[i % 2]}))
        if labelled_by == "metadata":
            (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(lines[split]))
    options = {"folder": str(tmp_path / "set"), "resolution": 8, "val_fraction": 0.0}
    dataset = data.load_dataset("huggingface", **options)
    own = data.load_dataset("folder", **options)
    assert list(dataset.class_names) == list(own.class_names) == list(PAIR)
    for split, count in (("test", 4), ("train", 6)):
        members = dataset.splits[split]
        levels = members.load(np.arange(count))[:, 0, 0, 0]
        assert levels.tolist() == [40 + 40 * label for label in members.labels.tolist()]
        assert sorted(members.labels) == sorted(own.splits[split].labels)
