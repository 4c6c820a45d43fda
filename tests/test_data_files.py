"""Which files are images, in which formats, and what a file may cost, however it is made."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax.data import load_dataset
from lgm_jax.data.dataset import SPLITS, Dataset
from lgm_jax.data.decode import BadImageError, decode, resize_and_crop
from lgm_jax.data.records import FileRecords, ImageSplit
from lgm_jax.data.splits import describe
from lgm_jax.errors import UserError
from tests.photos import write_image

R = 8
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def fill(folder: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> None:
    for label, name in enumerate(names):
        for i in range(count):
            write_image(folder / name / f"{i}.png", 100 * label + i)


def open_folder(folder: Path, **options: object) -> Dataset:
    return load_dataset("folder", folder=str(folder), resolution=R, **options)


def every_name(dataset: Dataset) -> set[str]:
    splits = (dataset.splits[name] for name in SPLITS if name in dataset.splits)
    return {split.name(i) for split in splits for i in range(len(split.labels))}


def load_one(path: Path) -> np.ndarray:
    records = FileRecords(path.parent, [path.name])
    split = ImageSplit(records, np.zeros(1, int), np.zeros(1, np.int32), R, orient=True)
    return split.load(np.zeros(1, int))[0]


def notes(dataset: Dataset) -> str:
    text = "\n".join(describe(dataset)["notes"])
    # They are recorded with a run, which no path of the machine is.
    assert "/tmp" not in text
    return text


@pytest.fixture(autouse=True)
def no_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class TestFormats:
    @pytest.mark.parametrize(
        "suffix",
        [
            *("tif", "gif", "webp", "avif", "bmp", "dib", "ppm", "jp2", "ico", "tga", "pcx", "sgi"),
            *("qoi", "dds", "mpo", "jfif", "JPEG", "Jpg", "apng", "blp"),
        ],
    )
    def test_what_pillow_reads_is_read(self, tmp_path, suffix):
        fill(tmp_path)
        image = Image.new("RGB", (32, 32), (200, 200, 200))
        if suffix == "blp":
            image = image.quantize()
        image.save(tmp_path / "cat" / f"x.{suffix}")
        assert f"cat/x.{suffix}" in every_name(open_folder(tmp_path))
        np.testing.assert_allclose(load_one(tmp_path / "cat" / f"x.{suffix}"), 200, atol=3)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", ""])
    @pytest.mark.parametrize("content", ["PNG", "JPEG", "AVIF", "TGA"])
    def test_content_decides_not_the_suffix(self, tmp_path, suffix, content):
        path = tmp_path / (f"x.{suffix}" if suffix else "x")
        Image.new("RGB", (R, R), (90, 90, 90)).save(path, content)
        if content == "TGA":
            # It has no signature, so that anything could pass for it.
            with pytest.raises(UserError, match="cannot read image"):
                load_one(path)
        else:
            np.testing.assert_allclose(load_one(path), 90, atol=3)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", 65535, 4095, 1023])
    def test_16_bit_grey_is_scaled(self, tmp_path, kind):
        grey = np.linspace(0, 65535, R * R).reshape(R, R).astype(np.uint16)
        if isinstance(kind, str):
            path, most = tmp_path / f"a.{kind.lower()}", 65535
            Image.fromarray(grey).save(path, kind)
        else:
            path, most = tmp_path / "a.pgm", kind
            grey = np.round(grey / 65535 * most).astype(np.uint16)
            path.write_bytes(b"P5 %d %d %d\n" % (R, R, most) + grey.astype(">u2").tobytes())
        expected = np.round(255 * (grey / most))
        np.testing.assert_array_equal(load_one(path), np.repeat(expected[..., None], 3, axis=-1))

    BROKEN = (b"Exif\0\0garbage!", b"\x01", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0")

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("exif", BROKEN)
    @pytest.mark.parametrize("suffix", ["webp", "png", "jpg"])
    def test_broken_exif_does_not_break_a_sound_image(self, tmp_path, suffix, exif):
        path = tmp_path / f"a.{suffix}"
        write_image(path, 90, exif=exif)
        np.testing.assert_allclose(load_one(path).astype(int), 90, atol=2)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
    @pytest.mark.parametrize(("orientation", "bright"), [(3, "left"), (6, "bottom"), (8, "top")])
    def test_every_format_is_turned_upright_once(self, tmp_path, suffix, orientation, bright):
        """Of an image whose right half is bright, where the bright half is when it is shown."""
        pixels = np.zeros((R, R, 3), np.uint8)
        pixels[:, R // 2 :] = 200
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif)
        shown = load_one(tmp_path / f"a.{suffix}").mean(axis=-1)
        quarter = slice(0, R // 4), slice(-(R // 4), None)
        means = {
            "top": shown[quarter[0]].mean(),
            "bottom": shown[quarter[1]].mean(),
            "left": shown[:, quarter[0]].mean(),
            "right": shown[:, quarter[1]].mean(),
        }
        assert max(means, key=means.__getitem__) == bright
        assert means[bright] > 180

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.jpg", POINTER, "git-lfs pointer: run git lfs pull"),
            (
                "a.png",
                b"/annex/objects/SHA256E-s1234--ab.png\n",
                "git-annex pointer: run git annex",
            ),
            (
                "a.heic",
                b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
                "HEIC, which is not read: convert it",
            ),
            ("a.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC, which is not read: convert it"),
            ("a.jxl", b"\xff\x0a\xfa\x01", "JPEG XL, which is not read: convert it"),
            ("a.jpg", b"\n<!DOCTYPE html><title>403</title>", "a web page"),
            ("a.jpg", b"", "it is empty"),
            ("a.nef", b"MM\0*\0\0\0\x08", "camera's raw file: export it"),
            ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not in a format that is read"),
            ("a.jpg", b"%PDF-1.7\n", "not in a format that is read"),
            ("a.png", b"\x89PNG\r\n\x1a\n", "broken PNG"),
        ],
    )
    def test_what_is_not_read_is_explained_in_a_line(self, tmp_path, name, content, words):
        fill(tmp_path)
        (tmp_path / "cat" / name).write_bytes(content)
        dataset = open_folder(tmp_path, val_fraction=0.0)
        split = next(s for s in dataset.splits.values() if f"cat/{name}" in map(s.name, range(15)))
        with pytest.raises(UserError) as error:
            split.load(np.arange(len(split.labels)))
        assert str(error.value).startswith(f"cannot read image {tmp_path}/cat/{name}: ")
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        kept = open_folder(tmp_path, on_bad_image="skip")
        assert [x for left_out in kept.skipped.values() for x in left_out] == [f"cat/{name}"]
        assert words in notes(kept)

    def test_what_is_wrong_with_all_of_them_is_said(self, tmp_path):
        fill(tmp_path)
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(POINTER)
        with pytest.raises(UserError, match=r"none of the train images .*: run git lfs pull$"):
            open_folder(tmp_path, on_bad_image="skip")

    def test_ghostscript_is_never_started(self, tmp_path, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
        fill(tmp_path)
        Image.new("RGB", (R, R)).save(tmp_path / "cat" / "a.jpg", format="EPS")
        Image.new("RGB", (R, R)).save(tmp_path / "cat" / "b.eps")
        kept = open_folder(tmp_path, on_bad_image="skip")
        assert sum(map(sum, kept.counts().values())) == 20
        assert "not images: 1 (.eps)" in notes(kept)


class TestLeftBehind:
    JUNK = (
        *(".DS_Store", "cat/._0.png", "__MACOSX/cat/0.png", "cat/Thumbs.db", "cat/desktop.ini"),
        *(".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png"),
        *("cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png", ".git/0.png", ".cache/0.png", ".dvc/0.png"),
        *(".Trash-1000/files/0.png", "$RECYCLE.BIN/0.png", "System Volume Information/0.png"),
        *("lost+found/0.png", "cat/.thumbnails/0.png", ".picasa.ini", "cat/.nfs0000000012.png"),
        *(
            "cat/.fuse_hidden0001.png",
            "cat/.~lock.0.png#",
            ".syncthing.0.png.tmp",
            ".stfolder/0.png",
        ),
        *("#recycle/0.png", ".snapshot/0.png", "#snapshot/0.png", "cat/a.png.part"),
        *("cat/b.jpg.crdownload", "cat/c.jpg.tmp", "cat/~$d.png", "cat/e.png~", "cat/Icon\r"),
        *("cat/~syncthing~0.png.tmp", "@Recycle/0.png", "RECYCLER/0.png", "Network Trash Folder/0"),
    )

    def test_is_no_photo_and_no_class(self, tmp_path):
        fill(tmp_path)
        before = open_folder(tmp_path)
        assert notes(before) == ""
        write_image(tmp_path.parent / "photo.png")
        photo = (tmp_path.parent / "photo.png").read_bytes()
        for name in self.JUNK:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(photo)
        after = open_folder(tmp_path)
        assert (after.fingerprint, after.class_names) == (before.fingerprint, ["cat", "dog"])
        assert "hidden, temporary or a system's" in notes(after)

    def test_is_none_in_split_folders_either(self, tmp_path):
        for split in ("train", "val"):
            fill(tmp_path / split)
        for name in ("__MACOSX/train/cat", "@eaDir", "train/@eaDir", "val/.AppleDouble", "val/new"):
            (tmp_path / name).mkdir(parents=True)
        write_image(tmp_path / "train" / "@eaDir" / "0.png")
        assert open_folder(tmp_path).class_names == ["cat", "dog"]

    def test_whatever_else_is_left_out_is_counted(self, tmp_path):
        fill(tmp_path)
        for name in ("README", "LICENSE", "labels.txt", "cat/a.txt", "cat/b.json", "dog/c.txt"):
            (tmp_path / name).write_text("words")
        write_image(tmp_path / "loose.png")
        (tmp_path / "new folder" / "deep").mkdir(parents=True)
        dataset = open_folder(tmp_path)
        assert dataset.class_names == ["cat", "dog"]
        for words in (
            "not images: 6 (.txt, no suffix, .json)",
            "images outside the folders: 1 (loose.png)",
            "empty folders: 1 (new folder)",
        ):
            assert words in notes(dataset)
        assert len(describe(dataset)["notes"]) == 1

    def test_a_file_without_suffix_is_known_by_its_bytes(self, tmp_path):
        fill(tmp_path)
        for name in ("cat/photo", "cat/2020.01.05", "dog/3"):
            write_image(tmp_path / name, format="PNG")
        (tmp_path / "dog" / "pointer").write_bytes(POINTER)
        names = every_name(open_folder(tmp_path))
        assert {"cat/photo", "cat/2020.01.05", "dog/3", "dog/pointer"} < names

    def test_in_grouped_sets_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr("lgm_jax.data.layouts._DOGS_PER_FOLDER", 4)
        for place in ("desert", "mountain", "dirt", "jungle"):
            for dog in ("bulldog", "corgi", "dachshund", "labrador"):
                for name in ("._a.png", "Thumbs.db", "a.png", "b.png", "c.png", "d.png"):
                    write_image(tmp_path / "0" / place / dog / name, format="PNG")
        dataset = load_dataset("spawrious_m2m_easy", folder=str(tmp_path), resolution=R)
        assert not any("._" in name or "Thumbs" in name for name in every_name(dataset))


class TestNames:
    def test_one_class_by_two_encodings_is_one(self, tmp_path):
        fill(tmp_path / "train", ("caf\u00e9", "dog", "straw berry"))
        fill(tmp_path / "val", ("cafe\u0301", "dog ", "Straw_Berry"))
        fill(tmp_path / "train", ("cafe\u0301",), count=3)
        (tmp_path / "train" / "cafe\u0301" / "0.png").rename(
            tmp_path / "train" / "cafe\u0301" / "x.png"
        )
        dataset = open_folder(tmp_path, val_fraction=0.0)
        assert dataset.class_names == ["caf\u00e9", "dog", "straw berry"]
        assert dataset.counts()["train"].tolist() == [13, 10, 10]
        assert dataset.counts()["test"].tolist() == [10, 10, 10]
        split = dataset.splits["test"]
        first = [np.flatnonzero(split.labels == label)[0] for label in range(3)]
        assert [split.name(i).split("/")[1][0] for i in first] == ["c", "d", "S"]
        assert "one class: caf\u00e9" in notes(dataset)
        assert "Straw_Berry is straw berry" in notes(dataset)

    def test_names_that_differ_in_case_alone_are_two_classes(self, tmp_path):
        for split in ("train", "val"):
            fill(tmp_path / split, ("Turkey", "turkey"))
        assert open_folder(tmp_path).class_names == ["Turkey", "turkey"]

    @pytest.mark.parametrize(
        ("raw", "shown"),
        [
            (b"caf\xe9", "caf\\xe9"),
            (b"two\nlines", "two\\x0alines"),
            (b"\x1b[31mred", "\\x1b[31mred"),
            (b"'quo\"ted' \\ <b>&|$x$", "'quo\"ted' \\ <b>&|$x$"),
            ("zero\u200bwidth\u202e ".encode(), "zerowidth"),
            ("\u2028".encode(), "\\u2028"),
            (b" ", "_"),
            (("\u65e5\u672c" * 40 + "\U0001f98a").encode(), "\u65e5\u672c" * 40 + "\U0001f98a"),
        ],
    )
    def test_any_name_is_one_line_of_text(self, tmp_path, raw, shown):
        fill(tmp_path, ("dog",))
        fill(tmp_path, (os.fsdecode(raw),))
        folder = os.fsencode(tmp_path) + b"/" + raw
        os.rename(folder + b"/0.png", folder + b"/\xe9\n.png")
        dataset = open_folder(tmp_path)
        assert shown in dataset.class_names
        for text in (*dataset.class_names, *every_name(dataset), notes(dataset)):
            assert text.encode().decode() == text
            assert "\n" not in text
        assert any(name.endswith("/\\xe9\\x0a.png") for name in every_name(dataset))
        for split in dataset.splits.values():
            split.load(np.arange(len(split.labels)))


class TestMemory:
    def test_extreme_shapes_take_little(self):
        # By torchvision's rule the first becomes 256 x 25,600,000 pixels before it is cropped.
        program = (
            "import io, itertools, resource; import numpy as np; from PIL import Image\n"
            "from lgm_jax.data.decode import decode, resize_and_crop\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "sizes = ((1, 100_000), (100_000, 1), (1, 1), (2, 60_000))\n"
            "places = (None, np.asarray([0.0, 0.999]), np.asarray([0.999, 0.0]))\n"
            "for size, place in itertools.product(sizes, places):\n"
            "    buffer = io.BytesIO()\n"
            "    Image.new('RGB', size, (7, 8, 9)).save(buffer, 'PNG')\n"
            "    image = resize_and_crop(decode(buffer.getvalue(), orient=True), 256, place)\n"
            "    assert image.shape == (256, 256, 3) and np.ptp(image, axis=(0, 1)).max() == 0\n"
            "    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
            "    assert used < 100_000, f'{size}: {used} kB'\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(("height", "width"), [(900, 60), (90, 3), (640, 64)])
    @pytest.mark.parametrize("place", [None, (0.0, 0.5), (0.999, 0.5), (0.31, 0.0)])
    def test_tall_images_are_cropped_as_if_resized_whole(self, height, width, place):
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        whole = np.asarray(image.resize((32, int(32 * height / width)), Image.Resampling.BILINEAR))
        top = round((len(whole) - 32) / 2)
        if place is not None:
            top = int(place[0] * (len(whole) - 32 + 1))
        ours = resize_and_crop(image, 32, None if place is None else np.asarray(place))
        # PIL may take its two passes in the other order, and rounds after each.
        assert np.abs(ours.astype(int) - whole[top : top + 32]).max() <= 1

    def test_a_large_jpeg_is_read_at_a_fraction(self, monkeypatch):
        monkeypatch.setattr("lgm_jax.data.decode.LARGE", 10_000)
        image = Image.linear_gradient("L").resize((400, 320)).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        for orient in (False, True):
            small = decode(buffer.getvalue(), orient=orient)
            assert np.shape(small) == (80, 100, 3)
            expected = np.asarray(image.resize((100, 80), Image.Resampling.BOX), int)
            np.testing.assert_allclose(np.asarray(small, int), expected, atol=4)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", progressive=True)
        with pytest.raises(BadImageError, match="400 x 320 pixels are too many for a progressive"):
            decode(buffer.getvalue(), orient=True)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "CMYK"])
    def test_another_large_image_is_made_small_strip_by_strip(self, monkeypatch, mode):
        image = Image.linear_gradient("L").resize((2100, 2060))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        elif mode == "RGBA":
            image = Image.merge("RGBA", (image, image, image, image))
        else:
            image = image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        whole = decode(buffer.getvalue(), orient=True)
        assert isinstance(whole, Image.Image)
        expected = np.asarray(whole.resize((1050, 1030)), int)
        monkeypatch.setattr("lgm_jax.data.decode.LARGE", 1050 * 1030)
        small = np.asarray(decode(buffer.getvalue(), orient=True), int)
        assert small.shape == (1030, 1050, 3)
        np.testing.assert_allclose(small, expected, atol=3)
