"""Published sets by name: their layouts, groups, official splits, and what they refuse."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax import data
from lgm_jax.data import imagenet, load_dataset
from lgm_jax.data.dataset import Dataset
from lgm_jax.data.layouts import SPAWRIOUS
from lgm_jax.errors import UserError
from tests.photos import names, write_image

R = 8
IMAGENETTE = [imagenet.wnids()[i] for i in imagenet.SUBSETS["imagenette"]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


class TestImageNetTable:
    def test_thousand_sorted_wordnet_names_with_distinct_words(self):
        names = list(imagenet.names_by_wnid().values())
        assert len(imagenet.wnids()) == len(set(names)) == 1000
        assert list(imagenet.wnids()) == sorted(set(imagenet.wnids()))
        assert names[574] == "golf ball"

    def test_subsets_have_distinct_classes(self):
        sizes = {name: len(set(subset)) for name, subset in imagenet.SUBSETS.items()}
        assert sizes.pop("imagenet-100") == 100
        assert set(sizes.values()) == {10}
        assert IMAGENETTE[:2] == ["n01440764", "n02102040"]
        names = list(imagenet.names_by_wnid().values())
        birds = [names[i] for i in imagenet.SUBSETS["imagenet-birds"]]
        assert birds[:2] == ["peacock", "flamingo"]


class TestImageNet:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        for label, wnid in enumerate(IMAGENETTE):
            for i in range(3):
                write_image(tmp_path / "train" / wnid / f"{i}.JPEG", 20 * label)
            write_image(tmp_path / "val" / wnid / "v.JPEG", 20 * label)
        return tmp_path

    def test_official_validation_is_test_and_nothing_is_held_out(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R)
        assert list(dataset.splits) == ["train", "test"]
        assert names(dataset, "test")[1] == "val/n02102040/v.JPEG"
        assert len(dataset.splits["train"].labels) == 30
        assert list(dataset.class_names[:2]) == ["tench", "English springer"]
        assert (dataset.name, list(dataset.wnids)) == ("imagenet", IMAGENETTE)

    def test_validation_images_on_request(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R, val_fraction=0.4)
        assert {name: len(split.labels) for name, split in dataset.splits.items()} == {
            "train": 20,
            "val": 10,
            "test": 10,
        }

    def test_subset_lists_only_its_classes_in_its_order(self, folder):
        # A class outside the subset may even be broken.
        (folder / "train" / "n02085620").mkdir()
        (folder / "val" / "n02085620").mkdir()
        dataset = load_dataset(
            "imagenet", folder=str(folder), resolution=R, subset="imagenette", val_fraction=0.4
        )
        assert list(dataset.wnids) == IMAGENETTE
        for name, split in dataset.splits.items():
            values = split.load(np.arange(len(split.labels)))[:, 0, 0, 0]
            np.testing.assert_array_equal(values, 20 * split.labels, err_msg=name)

    def test_indices_are_those_of_imagenet_1k(self, folder):
        dataset = load_dataset("imagenet", folder=str(folder), resolution=R, subset="701, 0,church")
        assert list(dataset.class_names) == ["parachute", "tench", "church"]

    def test_class_that_the_folder_lacks_is_named(self, folder):
        with pytest.raises(UserError, match=r"imagenet has no class n01443537 \(goldfish\)"):
            load_dataset("imagenet", folder=str(folder), resolution=R, subset="0,1")

    def test_unsorted_validation_images(self, folder):
        for path in sorted((folder / "val").glob("*/*")):
            path.rename(folder / "val" / f"{path.parent.name}.JPEG")
            path.parent.rmdir()
        with pytest.raises(UserError, match=r"val has no folders: move each image into"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_other_folders_are_refused(self, folder):
        for split in ("train", "val"):
            write_image(folder / split / "cat" / "0.JPEG")
        with pytest.raises(UserError, match=r"no classes of ImageNet-1k: cat; .*name=folder"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_missing_split(self, folder):
        (folder / "val").rename(folder / "held_out")
        with pytest.raises(UserError, match=r"has no val: expected train/<wnid>"):
            load_dataset("imagenet", folder=str(folder), resolution=R)

    def test_folder_is_asked_for(self):
        with pytest.raises(UserError, match=r"imagenet needs the folder with train/<wnid>/"):
            load_dataset("imagenet", resolution=R)


class TestArtBench:
    STYLES = (
        *("art_nouveau", "baroque", "expressionism", "impressionism", "post_impressionism"),
        *("realism", "renaissance", "romanticism", "surrealism", "ukiyo_e"),
    )

    def unpack(self, folder: Path) -> Path:
        inner = folder / "artbench-10-imagefolder-split"
        for i, style in enumerate(self.STYLES):
            write_image(inner / "train" / style / "a.jpg", 10 * i)
            write_image(inner / "train" / style / "b.jpg", 10 * i)
            write_image(inner / "test" / style / "c.jpg", 10 * i)
        return inner

    def test_as_it_unpacks_and_from_inside(self, tmp_path):
        inner = self.unpack(tmp_path)
        outside, inside = (
            load_dataset("artbench", folder=str(folder), resolution=R)
            for folder in (tmp_path, inner)
        )
        assert outside.fingerprint == inside.fingerprint
        assert (outside.name, tuple(outside.class_names)) == ("artbench", self.STYLES)
        assert {n: len(s.labels) for n, s in outside.splits.items()} == {"train": 20, "test": 10}
        assert outside.splits["test"].load(np.asarray([3]))[0, 0, 0, 0] == 30

    def test_at_their_own_size_images_are_not_resampled(self, tmp_path):
        inner = self.unpack(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (R, R, 3), np.uint8)
        path = inner / "train" / "baroque" / "a.jpg"
        Image.fromarray(pixels).save(path)
        with Image.open(path) as image:
            expected = np.asarray(image)
        dataset = load_dataset("artbench", folder=str(inner), resolution=R)
        row = names(dataset, "train").index("train/baroque/a.jpg")
        np.testing.assert_array_equal(dataset.splits["train"].load(np.asarray([row]))[0], expected)

    def test_other_folders_are_refused(self, tmp_path):
        write_image(self.unpack(tmp_path) / "test" / "cubism" / "0.jpg")
        with pytest.raises(UserError, match=r"no styles of ArtBench-10: cubism; .*name=folder"):
            load_dataset("artbench", folder=str(tmp_path), resolution=R)

    def test_archive_itself(self, tmp_path):
        (tmp_path / "artbench.tar").touch()
        with pytest.raises(UserError, match=r"artbench\.tar is an archive: unpack it"):
            load_dataset("artbench", folder=str(tmp_path / "artbench.tar"), resolution=R)


class TestWaterbirds:
    ROWS = (
        ("001.A/a.jpg", 0, 0, 0),
        ("001.A/b.jpg", 0, 0, 1),
        ("002.B/a.jpg", 1, 0, 0),
        ("002.B/b.jpg", 1, 0, 1),
        ("001.A/c.jpg", 0, 1, 1),
        ("002.B/c.jpg", 1, 1, 0),
        ("001.A/d.jpg", 0, 2, 0),
        ("002.B/d.jpg", 1, 2, 0),
        ("002.B/e.jpg", 1, 2, 1),
    )

    def unpack(self, folder: Path, rows=ROWS, columns="img_filename,y,split,place") -> Path:
        # As WILDS writes it, with an index and one more column.
        lines = [f"img_id,{columns},place_filename"]
        for i, (name, y, split, place) in enumerate(rows):
            write_image(folder / name, 10 * i)
            lines.append(f"{i},{name},{y},{split},{place},/b/beach/1.jpg")
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
        return folder

    def test_labels_groups_and_official_splits(self, tmp_path):
        dataset = load_dataset("waterbirds", folder=str(self.unpack(tmp_path)), resolution=R)
        assert list(dataset.class_names) == ["landbird", "waterbird"]
        assert list(dataset.group_names) == [
            "landbird on land",
            "landbird on water",
            "waterbird on land",
            "waterbird on water",
        ]
        train, val, test = (dataset.splits[name] for name in ("train", "val", "test"))
        assert (train.labels.tolist(), train.groups.tolist()) == ([0, 0, 1, 1], [0, 1, 2, 3])
        assert (val.labels.tolist(), val.groups.tolist()) == ([0, 1], [1, 2])
        assert (test.labels.tolist(), test.groups.tolist()) == ([0, 1, 1], [0, 2, 3])
        np.testing.assert_allclose(test.load(np.arange(3))[:, 0, 0, 0], [60, 70, 80], atol=1)

    @pytest.mark.parametrize(
        ("column", "value"), [("y", 2), ("y", ""), ("split", 3), ("place", -1), ("split", "train")]
    )
    def test_strange_value_is_named_with_its_line(self, tmp_path, column, value):
        row = {"img_filename": "x.jpg", "y": 0, "split": 0, "place": 0} | {column: value}
        self.unpack(tmp_path, [*self.ROWS, tuple(row.values())])
        with pytest.raises(UserError, match=rf"csv, line 11: {column} is '{value}', not from 0"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    @pytest.mark.parametrize(
        "kind",
        ["bom", "crlf", "semicolons", "tabs", "floats", "spaces", "capitals", "slashes", "empty"],
    )
    def test_table_as_other_programs_save_it(self, tmp_path, kind):
        folder = self.unpack(tmp_path)
        table = folder / "metadata.csv"
        text = table.read_text()
        changed = {
            "bom": "\ufeff" + text,
            "crlf": text.replace("\n", "\r\n"),
            "semicolons": text.replace(",", ";"),
            "tabs": text.replace(",", "\t"),
            "floats": re.sub(r"(?<=,)[012](?=,)", r"\g<0>.0", text),
            "spaces": text.replace(",", ", "),
            "capitals": text.replace("img_filename,y,split", "Img_Filename,Y,SPLIT"),
            "slashes": re.sub(r"(?<=00\d\.[AB])/", r"\\", text),
            "empty": text + ",,,,,\n",
        }[kind]
        expected = load_dataset("waterbirds", folder=str(folder), resolution=R)
        table.write_bytes(changed.encode())
        assert (
            load_dataset("waterbirds", folder=str(folder), resolution=R).fingerprint
            == expected.fingerprint
        )

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("9", "line 11: y is '', not from 0 to 1"),
            ("9,,0,0,0,x", "line 11: img_filename is empty"),
            ("9,001.A/a.jpg,nan,0,0,x", "line 11: y is 'nan', not from 0"),
            ("9,001.A/a.jpg,0.5,0,0,x", r"line 11: y is '0\.5', not from 0"),
            ("9,001.A/a.jpg,0,0,,x", "line 11: place is ''"),
            (b"\xff\xfe", "is not UTF-8"),
            ("9,a\0.jpg,0,0,0,x", "metadata|no file's path"),
            ("9,001.A/a.jpg,0,2,0,x", r"line 11: 001\.A/a\.jpg is in line 2 already"),
        ],
    )
    def test_rows_that_lack_something(self, tmp_path, line, message):
        folder = self.unpack(tmp_path)
        with (folder / "metadata.csv").open("ab") as table:
            table.write(line if isinstance(line, bytes) else line.encode())
        with pytest.raises(UserError, match=message) as error:
            load_dataset("waterbirds", folder=str(folder), resolution=R)
        assert "\n" not in str(error.value)

    def test_missing_column(self, tmp_path):
        self.unpack(tmp_path, columns="img_filename,y,split,background")
        with pytest.raises(UserError, match=r"are not as published: KeyError\('place'\)"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    def test_missing_table_and_image(self, tmp_path):
        with pytest.raises(UserError, match=r"has no metadata\.csv"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)
        self.unpack(tmp_path)
        (tmp_path / "001.A" / "a.jpg").unlink()
        with pytest.raises(UserError, match=r"001\.A/a\.jpg does not exist"):
            load_dataset("waterbirds", folder=str(tmp_path), resolution=R)

    @pytest.mark.parametrize("way", ["dots", "absolute"])
    def test_way_out_of_the_folder_is_refused(self, tmp_path, way):
        write_image(tmp_path / "outside.jpg")
        folder = self.unpack(tmp_path / "data")
        name = {"dots": "../outside.jpg", "absolute": str(tmp_path / "outside.jpg")}[way]
        with (folder / "metadata.csv").open("a") as table:
            table.write(f"9,{name},0,0,0,x\n")
        with pytest.raises(UserError, match=r"leads out of .*data$"):
            load_dataset("waterbirds", folder=str(folder), resolution=R)

    def test_links_are_followed(self, tmp_path):
        write_image(tmp_path / "pool.jpg", 77)
        folder = self.unpack(tmp_path / "data", [*self.ROWS, ("l.jpg", 1, 2, 1)])
        (folder / "l.jpg").unlink()
        (folder / "l.jpg").symlink_to("../pool.jpg")
        test = load_dataset("waterbirds", folder=str(folder), resolution=R).splits["test"]
        np.testing.assert_allclose(test.load(np.asarray([3]))[:, 0, 0, 0], 77, atol=1)

    def test_worst_group_needs_groups_to_survive_decoding(self, tmp_path):
        dataset = load_dataset("waterbirds", folder=str(self.unpack(tmp_path)), resolution=R)
        held = data.in_memory(dataset.splits["test"], limit_bytes=10**6)
        np.testing.assert_array_equal(held.groups, dataset.splits["test"].groups)
        np.testing.assert_array_equal(held.take(np.asarray([2])).groups, [3])


class TestSpawrious:
    @pytest.fixture
    def few(self, monkeypatch) -> None:
        """Folders of 100 images stand for the real 3,168: 97 and 3, 87 and 13."""
        monkeypatch.setattr("lgm_jax.data.layouts._DOGS_PER_FOLDER", 100)

    def unpack(self, folder: Path, benchmark: str, count: int = 100) -> Path:
        train, test, shared = SPAWRIOUS[benchmark]
        image = io.BytesIO()
        Image.new("RGB", (R, R)).save(image, "PNG")
        places = {*train.split(), *test.split(), *shared.split()}
        for environment in (0, 1) if shared else (0,):
            for place in places:
                for dog in ("bulldog", "corgi", "dachshund", "labrador"):
                    inside = folder / "spawrious224" / str(environment) / place / dog
                    inside.mkdir(parents=True)
                    for i in range(count):
                        (inside / f"{i:03d}.png").write_bytes(image.getvalue())
        return folder

    def tally(self, dataset: Dataset, split: str) -> dict[str, int]:
        groups = np.bincount(dataset.splits[split].groups, minlength=len(dataset.group_names))
        named = zip(dataset.group_names, groups.tolist(), strict=True)
        return {name: count for name, count in named if count}

    @pytest.mark.usefixtures("few")
    def test_one_to_one(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_o2o_hard")
        dataset = load_dataset("spawrious_o2o_hard", folder=str(folder), resolution=R)
        assert list(dataset.class_names) == ["bulldog", "corgi", "dachshund", "labrador"]
        # In the authors' code: bulldog jungle, dachshund mountain, labrador snow, corgi desert.
        assert self.tally(dataset, "train") == {
            "bulldog, jungle": 184,
            "bulldog, beach": 16,
            "dachshund, mountain": 184,
            "dachshund, beach": 16,
            "labrador, snow": 184,
            "labrador, beach": 16,
            "corgi, desert": 184,
            "corgi, beach": 16,
        }
        assert self.tally(dataset, "test") == {
            "bulldog, mountain": 200,
            "dachshund, snow": 200,
            "labrador, desert": 200,
            "corgi, jungle": 200,
        }
        for split in dataset.splits.values():
            dogs = [dataset.group_names[group].split(",")[0] for group in split.groups]
            assert dogs == [dataset.class_names[label] for label in split.labels]
        assert list(dataset.splits) == ["train", "test"]
        assert not set(names(dataset, "train")) & set(names(dataset, "test"))

    @pytest.mark.usefixtures("few")
    def test_many_to_many(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_m2m_easy") / "spawrious224"
        dataset = load_dataset("spawrious_m2m_easy", folder=str(folder), resolution=R)
        pairs = {
            "bulldog": ("desert", "mountain"),
            "dachshund": ("desert", "mountain"),
            "labrador": ("dirt", "jungle"),
            "corgi": ("dirt", "jungle"),
        }
        expected = {f"{dog}, {place}": 100 for dog in pairs for place in pairs[dog]}
        assert self.tally(dataset, "train") == expected
        swapped = {"desert": "dirt", "mountain": "jungle", "dirt": "desert", "jungle": "mountain"}
        expected = {f"{dog}, {swapped[place]}": 100 for dog in pairs for place in pairs[dog]}
        assert self.tally(dataset, "test") == expected

    def test_missing_folder_is_named(self, tmp_path):
        (tmp_path / "0").mkdir()
        with pytest.raises(UserError, match="has no folder 0/jungle/bulldog: unpack the arch"):
            load_dataset("spawrious_o2o_hard", folder=str(tmp_path), resolution=R)

    @pytest.mark.usefixtures("few")
    def test_incomplete_copy_is_refused(self, tmp_path):
        folder = self.unpack(tmp_path, "spawrious_o2o_easy", count=90)
        with pytest.raises(UserError, match="0/desert/bulldog has 90 images, but 97 are needed"):
            load_dataset("spawrious_o2o_easy", folder=str(folder), resolution=R)
