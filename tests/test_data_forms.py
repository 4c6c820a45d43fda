"""Forms that data sets come in, beside the plain one: folders, tables and arrays of other tools."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax import data
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.listing import is_left_behind
from lgm_jax.errors import UserError

PAIR = ("cat", "dog")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(file, "PNG")
    return file.getvalue()


class TestFolders:
    def open(self, root: Path, *folders: str) -> Dataset:
        for number, folder in enumerate(folders):
            (root / "set" / folder).mkdir(parents=True)
            for i in range(4):
                (root / "set" / folder / f"{i}.png").write_bytes(png(number))
        return data.load_dataset("folder", folder=str(root / "set"), resolution=8)

    @pytest.mark.parametrize("held_out", ["test/unknown", "val/images", "Testing/all"])
    def test_one_folder_for_images_without_labels_is_no_class(self, tmp_path, held_out):
        dataset = self.open(tmp_path, "train/cat", "train/dog", held_out)
        assert dataset.class_names == list(PAIR)
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 4,
            "val": 2,
            "test": 2,
        }
        assert [note for note in dataset.notes if "have no labels and are ignored" in note]

    def test_one_folder_of_a_class_is_one(self, tmp_path):
        dataset = self.open(tmp_path, "train/cat", "train/dog", "test/Dog")
        assert dataset.splits["test"].labels.tolist() == [1] * 4

    @pytest.mark.parametrize(
        "folders",
        [
            ("trainA", "trainB", "testA", "testB"),
            ("train_A", "test_A"),
            ("cat_train", "cat_test", "dog_train", "dog_test"),
        ],
    )
    def test_splits_and_classes_in_one_name_are_refused(self, tmp_path, folders):
        with pytest.raises(UserError, match="expected train/<class> and test/<class>"):
            self.open(tmp_path, *folders)

    def test_classes_that_mention_one_split_are_classes(self, tmp_path):
        dataset = self.open(tmp_path, "bullet_train", "steam_train", "bus")
        assert dataset.class_names == ["bullet_train", "bus", "steam_train"]

    @pytest.mark.parametrize("pair", [("seen", "unseen"), ("fold_0", "fold_1"), ("base", "novel")])
    def test_classes_that_hold_the_same_folders_are_said(self, tmp_path, pair):
        dataset = self.open(tmp_path, *(f"{name}/{each}" for name in pair for each in PAIR))
        assert dataset.class_names == list(pair)
        (note,) = dataset.notes
        assert f"{', '.join(pair)} are the classes, and each has folders cat, dog: if" in note

    def test_what_lies_in_a_folder_that_is_alone_is_named(self, tmp_path):
        with pytest.raises(
            UserError, match=r"images alone, which has cat, dog: give .*/set/images"
        ):
            self.open(tmp_path, "images/cat", "images/dog")

    def test_held_out_classes_that_are_none_of_those_trained_are_named(self, tmp_path):
        with pytest.raises(UserError, match=r"test images \(0, 1\) is one of train's \(cat, dog\)"):
            self.open(tmp_path, "train/cat", "train/dog", "test/0", "test/1")

    @pytest.mark.parametrize("name", ["_gsdata_", "found.000", "~snapshot", "@sharebin"])
    def test_what_disks_and_servers_leave_is_no_class(self, tmp_path, name):
        assert is_left_behind(name)
        assert self.open(tmp_path, *PAIR, name).class_names == list(PAIR)


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


class TestArrays:
    IMAGES = np.arange(10 * 8 * 8 * 3).reshape(10, 8, 8, 3) % 256

    def test_labels_may_begin_anywhere(self):
        given = {"train": (self.IMAGES.astype(np.uint8), np.arange(10) % 2 + 1)}
        assert data.from_arrays(given, resolution=8).class_names == ["1", "2"]

    @pytest.mark.parametrize(
        ("images", "advice"),
        [
            (IMAGES > 9, r"\(255 \* images\)\.round\(\)\.astype\('uint8'\)$"),
            (IMAGES / 255, r"\(255 \* images\)\.round\(\)\.astype\('uint8'\)$"),
            (IMAGES.astype(np.float32), r": images\.astype\('uint8'\)$"),
            ((IMAGES * 257).astype(np.uint16), r": \(images // 257\)\.astype\('uint8'\)$"),
            (IMAGES / 127.5 - 1, "values are from -1 to 1, scale them to 0 to 255$"),
        ],
    )
    def test_advice_does_not_wrap_around(self, images, advice):
        with pytest.raises(UserError, match=advice):
            data.from_arrays({"train": (images, np.arange(10) % 2)}, resolution=8)


class TestWaterbirds:
    COLUMNS = "img_filename,y,split,place"

    def open(self, root: Path, text: str) -> Dataset:
        for i in range(6):
            path = root / "birds" / "a" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i))
        (root / "birds" / "metadata.csv").write_text(text)
        return data.load_dataset("waterbirds", folder=str(root / "birds"), resolution=8)

    def rows(self, slash: str = "/") -> list[str]:
        return [f"a{slash}{i}.png,{i % 2},{i // 2},0" for i in range(6)]

    def test_tables_of_other_programs_are_read(self, tmp_path):
        lines = [self.COLUMNS.title(), *self.rows("\\"), ",,,"]
        dataset = self.open(tmp_path, "\n".join(lines))
        assert {name: split.labels.tolist() for name, split in dataset.splits.items()} == {
            "train": [0, 1],
            "val": [0, 1],
            "test": [0, 1],
        }

    def test_an_image_in_two_rows_is_refused(self, tmp_path):
        lines = [self.COLUMNS, *self.rows(), "a/0.png,0,2,0"]
        with pytest.raises(UserError, match=r"line 8: a/0\.png is in line 2 already"):
            self.open(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("npz", "set/photos.npz"),
        ("waterbirds", "set/metadata.csv"),
        ("huggingface", "set/train.parquet"),
    ],
)
def test_pointers_are_called_so_in_every_source(tmp_path, name, path):
    if name == "huggingface":
        pytest.importorskip("datasets")
    file = tmp_path / path
    file.parent.mkdir()
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    folder = file if name == "npz" else file.parent
    with pytest.raises(UserError, match=f"{file.name}: it is a git-lfs pointer: run git lfs pull"):
        data.load_dataset(name, folder=str(folder), resolution=8)
