"""Sets that other packages store: TFDS, built once by TFDS itself, and Hugging Face's folders."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import load_dataset, tfds
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.records import ImageSplit
from lgm_jax.data.splits import check
from lgm_jax.errors import UserError
from tests.photos import load_folder

R = 16
ROOT = Path(__file__).parents[1]


_MISSING = [
    name
    for name in ("tensorflow_datasets", "tensorflow", "importlib_resources", "datasets")
    if importlib.util.find_spec(name) is None
]
if _MISSING and os.environ.get("LGM_REQUIRE_PARITY") == "1":
    raise ModuleNotFoundError(f"LGM_REQUIRE_PARITY=1, but these are missing: {_MISSING}")
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {_MISSING}")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """`photos/`, and `tfds/` with two sets in ArrayRecord format and one in TFRecord's."""
    folder = tmp_path_factory.mktemp("built")
    script = str(ROOT / "tests" / "build_tfds.py")
    done = subprocess.run([sys.executable, script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def images_by_class(dataset: Dataset, split: str) -> list[set[bytes]]:
    members = dataset.splits[split]
    images = members.load(np.arange(len(members.labels)))
    return [
        {image.tobytes() for image in images[members.labels == label]}
        for label in range(dataset.num_classes)
    ]


class TestTfds:
    def test_same_labels_and_crops_as_the_folder_it_was_built_from(self, built):
        packaged = load_dataset("imagenette", folder=str(built / "tfds"), resolution=R)
        folder = load_folder(built / "photos", resolution=R, val_fraction=0.0)
        assert list(packaged.class_names) == ["tench", "English springer", "cassette player"]
        assert list(packaged.wnids) == list(folder.wnids)
        assert packaged.class_names == folder.class_names
        assert {n: len(s.labels) for n, s in packaged.splits.items()} == {"train": 30, "test": 12}
        for split in ("train", "test"):
            expected = images_by_class(folder, split)
            assert images_by_class(packaged, split) == expected
            assert len(set.union(*expected)) == len(packaged.splits[split].labels)

    def test_splits_pickle_for_worker_processes(self, built):
        split = load_dataset("imagenette", folder=str(built / "tfds"), resolution=R).splits["test"]
        copy = pickle.loads(pickle.dumps(split))
        np.testing.assert_array_equal(copy.load(np.arange(12)), split.load(np.arange(12)))

    def test_a_crop_is_chosen_by_its_place(self, built):
        split = load_dataset("imagenette", folder=str(built / "tfds"), resolution=R).splits["test"]
        ends = [split.load(np.arange(12), np.full((12, 2), place)) for place in (0.0, 0.999)]
        middle = split.load(np.arange(12))
        assert all(np.any(end != middle) for end in ends)

    def test_other_sets_and_feature_names(self, built):
        dataset = load_dataset("tfds:birds", folder=str(built / "tfds"), resolution=R)
        assert (dataset.name, dataset.num_classes) == ("birds", 3)

    def test_subset_keeps_the_order_that_was_asked_for(self, built):
        dataset = load_dataset(
            "imagenette", folder=str(built / "tfds"), resolution=R, subset="482,0", val_fraction=0.3
        )
        assert list(dataset.class_names) == ["cassette player", "tench"]
        folder = load_folder(built / "photos", resolution=R, val_fraction=0.0)
        assert images_by_class(dataset, "test") == [
            images_by_class(folder, "test")[label] for label in (2, 0)
        ]
        assert [len(split.labels) for split in dataset.splits.values()] == [14, 6, 8]

    def test_default_folder(self, built, monkeypatch, tmp_path):
        monkeypatch.setenv("TFDS_DATA_DIR", str(built / "tfds"))
        by_variable = load_dataset("imagenette", resolution=R)
        monkeypatch.delenv("TFDS_DATA_DIR")
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "tensorflow_datasets").symlink_to(built / "tfds")
        assert load_dataset("imagenette", resolution=R).fingerprint == by_variable.fingerprint

    def test_labels_are_read_once(self, built, cache):
        first = load_dataset("imagenette", folder=str(built / "tfds"), resolution=R)
        files = sorted((cache / "lgm_jax").glob("labels_*.npy"))
        (path,) = (file for file in files if np.load(file).size == 30)
        np.save(path, np.load(path)[::-1])
        again = load_dataset("imagenette", folder=str(built / "tfds"), resolution=R)
        np.testing.assert_array_equal(
            again.splits["train"].labels, first.splits["train"].labels[::-1]
        )

    def test_tensorflow_is_not_imported(self, built):
        code = (
            "import sys, numpy as np; from lgm_jax.data import load_dataset; "
            f"d = load_dataset('imagenette', folder={str(built / 'tfds')!r}, resolution=16); "
            "d.splits['train'].load(np.arange(30)); assert 'tensorflow' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_tfrecord_copy_is_answered_with_the_command(self, built):
        with pytest.raises(UserError) as error:
            load_dataset("food101", folder=str(built / "tfds"), resolution=R)
        assert str(error.value) == (
            "food101 is prepared as tfrecord, which needs TensorFlow to read; convert it: "
            "pip install 'lgm_jax[tfdsbuild]' && tfds convert_format "
            f"--dataset_version_dir={built}/tfds/food101/1.0.0 --out_file_format=array_record"
        )

    def test_converted_copy_beside_the_tfrecord_one_is_read(self, built, tmp_path):
        # What `tfds convert_format` leaves behind: both formats in one folder.
        folder = tmp_path / "food101" / "1.0.0"
        shutil.copytree(built / "tfds" / "food101" / "1.0.0", folder)
        for path in (built / "tfds" / "imagenette" / "1.0.0").glob("*array_record*"):
            shutil.copy(path, folder / path.name.replace("imagenette", "food101"))
        info = json.loads((folder / "dataset_info.json").read_text())
        info["alternativeFileFormats"] = ["array_record"]
        (folder / "dataset_info.json").write_text(json.dumps(info))
        converted, original = (
            load_dataset(name, folder=str(root), resolution=R)
            for name, root in (("food101", tmp_path), ("imagenette", built / "tfds"))
        )
        assert images_by_class(converted, "test") == images_by_class(original, "test")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("cifar10", "holds no cifar10: pip install .* && tfds build cifar10 --file_format=arr"),
            ("imagenet2012", r"ILSVRC2012_img_train\.tar .*put them into .*downloads/manual, then"),
            ("tfds:no_such_set", "TFDS knows no set 'no_such_set'"),
            ("tfds:../x", "is no TFDS name"),
            ("tfds:é", "is no TFDS name"),
        ],
    )
    def test_what_is_not_prepared(self, built, name, message):
        with pytest.raises(UserError, match=message) as error:
            load_dataset(name, folder=str(built / "tfds"), resolution=R)
        assert "\n" not in str(error.value)

    def test_newest_version_and_one_of_several_configurations(self, built, tmp_path):
        source = built / "tfds" / "imagenette" / "1.0.0"
        for version in ("1.0.0", "1.10.0", "1.9.0"):
            shutil.copytree(source, tmp_path / "imagenette" / "320px" / version)
        dataset = load_dataset("imagenette", folder=str(tmp_path), resolution=R)
        split = dataset.splits["train"]
        assert isinstance(split, ImageSplit)
        assert split.records.where.endswith("imagenette/320px/1.10.0")
        shutil.copytree(source, tmp_path / "imagenette" / "160px" / "1.0.0")
        with pytest.raises(UserError, match="name=tfds:imagenette/160px or tfds:imagenette/320px"):
            load_dataset("imagenette", folder=str(tmp_path), resolution=R)
        assert load_dataset("tfds:imagenette/160px", folder=str(tmp_path), resolution=R).name == (
            "imagenette"
        )

    def test_missing_shard(self, built, tmp_path):
        shutil.copytree(built / "tfds" / "birds", tmp_path / "birds")
        (shard,) = (tmp_path / "birds" / "1.0.0").glob("birds-train*")
        shard.unlink()
        with pytest.raises(UserError, match=rf"^{shard} is missing: build birds again"):
            load_dataset("tfds:birds", folder=str(tmp_path), resolution=R)

    def test_no_label(self, built, tmp_path):
        folder = tmp_path / "birds" / "1.0.0"
        shutil.copytree(built / "tfds" / "birds" / "1.0.0", folder)
        text = (folder / "features.json").read_text()
        assert "class_label_feature.ClassLabel" in text
        text = text.replace("class_label_feature.ClassLabel", "scalar.Scalar")
        features = json.loads(text)
        del features["featuresDict"]["features"]["species"]
        (folder / "features.json").write_text(json.dumps(features))
        with pytest.raises(UserError, match=r"birds has features \['image'\]: it needs one label"):
            load_dataset("tfds:birds", folder=str(tmp_path), resolution=R)

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_labels_that_are_missing(self, built, monkeypatch, split):
        read = tfds.read_column

        def without(source: object, key: str, said: str, place: str) -> np.ndarray:
            labels = read(source, key, said, place)
            return np.full_like(labels, -1) if said.endswith(split) else labels

        monkeypatch.setattr(tfds, "read_column", without)
        options = {"folder": str(built / "tfds"), "resolution": R}
        if split == "train":
            with pytest.raises(UserError, match=r"^imagenette has no labels in its train split$"):
                load_dataset("imagenette", **options)
            return
        dataset = load_dataset("imagenette", **options)
        assert {n: len(s.labels) for n, s in dataset.splits.items()} == {"train": 24, "test": 6}
        assert "imagenette: the val images have no labels and are ignored" in check(dataset)

    def test_label_by_name(self, built):
        options = {"folder": str(built / "tfds"), "resolution": R}
        assert load_dataset("tfds:birds", **options, label="species").num_classes == 3
        with pytest.raises(UserError, match=r"config\.data\.label 'specie': did you mean species"):
            load_dataset("tfds:birds", **options, label="specie")

    def test_split_that_is_none_is_refused(self, built, tmp_path):
        folder = tmp_path / "birds" / "1.0.0"
        shutil.copytree(built / "tfds" / "birds" / "1.0.0", folder)
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace("validation", "holdout")))
        text = (folder / "dataset_info.json").read_text()
        (folder / "dataset_info.json").write_text(text.replace("validation", "holdout"))
        with pytest.raises(UserError, match="birds has a split holdout beside train: call it val"):
            load_dataset("tfds:birds", folder=str(tmp_path), resolution=R)

    def test_broken_image_is_named_and_skipped(self, built, monkeypatch):
        from lgm_jax.data.tfds import TfdsRecords

        read = TfdsRecords.read

        def damaged(self: TfdsRecords, number: int) -> bytes:
            return read(self, number)[: 100 if number == 3 else None]

        monkeypatch.setattr(TfdsRecords, "read", damaged)
        folder = str(built / "tfds")
        dataset = load_dataset("imagenette", folder=folder, resolution=R)
        with pytest.raises(UserError, match=r"cannot read image .*imagenette/1\.0\.0/train\[3\]: "):
            dataset.splits["train"].load(np.arange(5))
        dataset = load_dataset("imagenette", folder=folder, resolution=R, on_bad_image="skip")
        assert dataset.skipped == {"train": ["train[3]"], "test": ["validation[3]"]}


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lgm_jax\[hf\]'"):
        load_dataset("huggingface", folder=str(tmp_path), resolution=R)


class TestHuggingFace:
    @pytest.fixture
    def tables(self, tmp_path):
        import datasets

        photos = tmp_path / "photos"
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            for label, name in enumerate(("cat", "dog")):
                for i in range(5):
                    pixels = rng.integers(0, 100, (20 + i, 30, 3)) + 100 * label
                    path = photos / split / name / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.astype(np.uint8)).save(path)

        def table(split: str) -> datasets.Dataset:
            paths = sorted((photos / split).glob("*/*.png"))
            features = datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
            )
            columns = {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
                "label": [["cat", "dog"].index(path.parent.name) for path in paths],
            }
            return datasets.Dataset.from_dict(columns, features=features)

        return photos, datasets.DatasetDict({split: table(split) for split in ("train", "test")})

    @pytest.fixture(params=["parquet", "saved"])
    def stored(self, request, tables, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        photos, splits = tables
        folder = tmp_path / "pets"
        if request.param == "saved":
            splits.save_to_disk(folder)
        else:
            (folder / "data").mkdir(parents=True)
            for name, table in splits.items():
                table.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
        return photos, folder

    def test_same_labels_and_crops_as_the_folder(self, stored):
        photos, folder = stored
        hub = load_dataset("huggingface", folder=str(folder), resolution=R, val_fraction=0.0)
        own = load_folder(photos, resolution=R, val_fraction=0.0)
        assert (hub.name, list(hub.class_names)) == ("pets", ["cat", "dog"])
        for name, split in own.splits.items():
            np.testing.assert_array_equal(hub.splits[name].labels, split.labels)
            everything = np.arange(len(split.labels))
            images = split.load(everything)
            np.testing.assert_array_equal(hub.splits[name].load(everything), images)
            copy = pickle.loads(pickle.dumps(hub.splits[name]))
            np.testing.assert_array_equal(copy.load(everything), images)

    def test_refusals(self, stored):
        _, folder = stored
        with pytest.raises(UserError, match="holds no parquet files"):
            load_dataset("huggingface", folder=str(ROOT / "configs"), resolution=R)
        for path in [*folder.rglob("*.parquet"), *folder.rglob("*.arrow")]:
            path.write_bytes(b"no table")
        with pytest.raises(UserError, match=rf"^cannot read {folder}: ") as error:
            load_dataset("huggingface", folder=str(folder), resolution=R)
        assert "\n" not in str(error.value)
