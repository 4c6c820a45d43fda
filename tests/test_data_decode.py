"""Decoding, resizing and cropping, as PIL and torchvision's definitions do."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lgm_jax import data
from lgm_jax.data import imagenet, load_dataset
from lgm_jax.data.decode import decode, resize_and_crop
from lgm_jax.data.records import ImageSplit
from lgm_jax.errors import UserError
from tests.photos import load_one, noise, split_of, write_image

RESOLUTION = R = 8
IMAGENETTE = [imagenet.wnids()[i] for i in imagenet.SUBSETS["imagenette"]]


ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: np.rot90(image),
}


class TestDecoding:
    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_exif_orientation_is_applied(self, tmp_path, orientation):
        pixels = noise(8, 8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(
            load_one(tmp_path / "a.png"), ORIENTATIONS[orientation](pixels)
        )

    def test_exif_is_applied_before_the_crop(self, tmp_path):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = noise(8, 8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(load_one(tmp_path / "a.png"), np.rot90(noise(8, 8), -1))

    def test_grey(self, tmp_path):
        grey = noise(8, 8)[..., 0]
        Image.fromarray(grey).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png"), np.stack([grey] * 3, -1))

    def test_black_and_white(self, tmp_path):
        bits = noise(8, 8)[..., 0] > 127
        Image.fromarray(bits).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png")[..., 2], bits * 255)

    @pytest.mark.parametrize("suffix", ["png", "gif"])
    def test_palette(self, tmp_path, suffix):
        pixels = (noise(8, 8) // 128 * 255).astype(np.uint8)
        Image.fromarray(pixels).quantize(8).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(load_one(tmp_path / f"a.{suffix}"), pixels)

    def test_transparency_is_laid_on_white(self, tmp_path):
        color, alpha = noise(8, 8), noise(16, 8)[8:, :, :1]
        Image.fromarray(np.concatenate([color, alpha], -1)).save(tmp_path / "a.png")
        expected = color * (alpha / 255) + 255 * (1 - alpha / 255)
        np.testing.assert_allclose(load_one(tmp_path / "a.png"), expected, atol=1)

    def test_transparent_grey_is_laid_on_white(self, tmp_path):
        grey = np.full((8, 8, 2), 10, np.uint8)
        grey[:4, :, 1], grey[4:, :, 1] = 0, 255
        Image.fromarray(
            grey,
        ).save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_one(tmp_path / "a.png")[:, 0, 0], [255] * 4 + [10] * 4)

    def test_transparent_palette_entry_is_laid_on_white(self, tmp_path):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.paste(1, (0, 0, 8, 4))
        for name in ("a.png", "a.gif"):
            image.save(tmp_path / name, transparency=0)
            loaded = load_one(tmp_path / name)
            np.testing.assert_array_equal(loaded[0, 0], [40, 50, 60])
            np.testing.assert_array_equal(loaded[7, 0], [255, 255, 255])

    def test_cmyk(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
        Image.new("CMYK", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.tif")
        np.testing.assert_allclose(load_one(tmp_path / "a.jpg")[4, 4], [255, 0, 0], atol=2)
        np.testing.assert_allclose(load_one(tmp_path / "a.tif")[4, 4], [0, 127, 127], atol=1)

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "big_endian.tif"])
    def test_16_bit_grey_is_scaled(self, tmp_path, name):
        grey = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
        image = Image.fromarray(grey)
        if name.startswith("big"):
            image = Image.frombytes("I;16B", (8, 8), grey.astype(">u2").tobytes())
        image.save(tmp_path / name)
        expected = np.round(grey / 257)
        np.testing.assert_array_equal(load_one(tmp_path / name)[..., 1], expected)

    def test_animation_gives_its_first_frame(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (10, 200)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert np.unique(load_one(tmp_path / "a.gif")).tolist() == [10]

    @pytest.mark.parametrize(
        ("height", "width", "resolution"),
        [
            (37, 53, 16),
            (61, 40, 16),
            (10, 7, 16),
            (33, 33, 16),
            (16, 19, 16),
            (19, 16, 16),
            (30, 101, 13),
        ],
    )
    def test_resize_and_crop(self, tmp_path, height, width, resolution):
        pixels = noise(height, width)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        # PIL rounds to 8 bits after each of its two passes.
        np.testing.assert_allclose(
            load_one(tmp_path / "a.png", resolution),
            by_definition(pixels, resolution),
            atol=1.01,
        )


def by_definition(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """torchvision's `Resize(r)` and `CenterCrop(r)`, by their definition, in float64."""

    def matrix(size: int, new_size: int) -> np.ndarray:
        scale = size / new_size
        centers = (np.arange(new_size)[:, None] + 0.5) * scale
        distances = np.abs(np.arange(size)[None] + 0.5 - centers) / max(scale, 1)
        weights = np.maximum(1 - distances, 0)
        return weights / weights.sum(axis=1, keepdims=True)

    height, width = pixels.shape[:2]
    if height < width:
        new_height, new_width = resolution, int(resolution * width / height)
    else:
        new_height, new_width = int(resolution * height / width), resolution
    large = np.einsum(
        "ah,bw,hwc->abc", matrix(height, new_height), matrix(width, new_width), pixels
    )
    top, left = round((new_height - resolution) / 2), round((new_width - resolution) / 2)
    return large[top : top + resolution, left : left + resolution]


class TestBrokenImages:
    def check(self, path: Path, reason: str) -> None:
        write_image(path.parent / "good.png")
        split = split_of(path.parent, "good.png", path.name)
        with pytest.raises(UserError, match=rf"^cannot read image {path}: .*{reason}"):
            split.load(np.asarray([0, 1]))
        assert split.load(np.asarray([0])).shape == (1, 8, 8, 3)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
    def test_truncated(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise(64, 64)).save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with warnings.catch_warnings():
            # libtiff's directory is gone, about which PIL warns too.
            warnings.simplefilter("ignore")
            self.check(path, "")

    def test_not_an_image(self, tmp_path):
        (tmp_path / "a.jpg").write_text("<html>404</html>")
        self.check(tmp_path / "a.jpg", "it is a web page")

    def test_empty_file(self, tmp_path):
        (tmp_path / "a.png").touch()
        self.check(tmp_path / "a.png", "it is empty$")

    def test_file_that_went_away(self, tmp_path):
        self.check(tmp_path / "a.png", "No such file or directory$")

    def test_format_in_disguise(self, tmp_path):
        # PIL would hand it to Ghostscript.
        Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", format="EPS")
        self.check(tmp_path / "a.jpg", "not in a format that is read, like JPEG or PNG$")

    def test_32_bit_grey_has_no_range(self, tmp_path):
        Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tif")
        self.check(tmp_path / "a.tif", "32-bit grey has no agreed range")

    def test_decompression_bomb(self, tmp_path):
        # 30,000 x 30,000 black pixels in 3 MB would be an hour's test: its header says enough.
        write_image(tmp_path / "a.png")
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[16:24] = (30_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(data)
        self.check(tmp_path / "a.png", "30000 x 30000 pixels are more than 134,217,728: save it")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def photo(width: int = 61, height: int = 47) -> Image.Image:
    """Smooth colour with some grain, which a JPEG keeps mostly."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-9, 9, smooth.shape), 0, 255).astype("u1"))


class TestDecode:
    @pytest.mark.parametrize("quality", [30, 75, 95])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_fast_jpeg_is_pil_s(self, quality, subsampling, progressive):
        source = jpeg(photo(), quality=quality, subsampling=subsampling, progressive=progressive)
        with Image.open(io.BytesIO(source)) as image:
            expected = np.asarray(image.convert("RGB"))
        for orient in (False, True):
            np.testing.assert_array_equal(np.asarray(decode(source, orient=orient)), expected)

    @pytest.mark.parametrize("mode", ["L", "CMYK"])
    def test_grey_and_cmyk_jpeg_are_pil_s(self, mode):
        source = jpeg(photo().convert(mode))
        with Image.open(io.BytesIO(source)) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(source, orient=False)), expected)

    def test_orientation_only_on_request(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        source = jpeg(photo(), exif=exif)
        assert np.shape(decode(source, orient=False)) == (47, 61, 3)
        assert np.shape(decode(source, orient=True)) == (61, 47, 3)

    def test_benchmark_sets_ignore_the_orientation_and_own_folders_do_not(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        half = Image.fromarray(np.repeat(np.asarray([[0] * R, [255] * R], np.uint8), R // 2, 0))
        for split in ("train", "val"):
            for wnid in IMAGENETTE[:2]:
                for i in range(3):
                    path = tmp_path / split / wnid / f"{i}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(jpeg(half.convert("RGB"), exif=exif))
        top = {
            name: load_dataset(name, folder=str(tmp_path), resolution=R)
            .splits["test"]
            .load(np.asarray([0]))[0, 0, 0, 0]
            for name in ("imagenet", "folder")
        }
        assert top["imagenet"] < 20
        assert top["folder"] > 235

    def test_16_bit_rgb(self):
        values = np.linspace(0, 65535, 64 * 3).round().astype(">u2").reshape(8, 8, 3)

        def chunk(kind: bytes, body: bytes) -> bytes:
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        rows = b"".join(b"\0" + row.tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        # PIL keeps the high byte, which is at most one level off.
        np.testing.assert_allclose(
            np.asarray(decode(png, orient=False)), values.astype(np.float64) / 257, atol=1
        )


class TestPlaces:
    def split(self, height: int, width: int) -> tuple[ImageSplit, np.ndarray]:
        pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        arrays = {"train": (pixels, np.zeros(1, int)), "test": (pixels, np.zeros(1, int))}
        dataset = data.from_arrays(arrays, resolution=R, class_names="ab", val_fraction=0.0)
        split = dataset.splits["train"]
        assert isinstance(split, ImageSplit)
        return split, pixels[0]

    @pytest.mark.parametrize(("height", "width"), [(R, R + 3), (R + 3, R), (R, R)])
    def test_uniform_places_reach_every_crop(self, height, width):
        split, pixels = self.split(height, width)
        room = max(height, width) - R
        for i in range(10):
            place = np.asarray([(i + 0.5) / 10] * 2)
            offset = int(place[0] * (room + 1))
            top, left = (offset, 0) if height > width else (0, offset)
            image = split.load(np.asarray([0]), place[None])[0]
            np.testing.assert_array_equal(image, pixels[top : top + R, left : left + R])

    def test_default_is_the_middle(self):
        split, pixels = self.split(R + 4, R)
        np.testing.assert_array_equal(split.load(np.asarray([0]))[0], pixels[2 : R + 2])

    @pytest.mark.parametrize("size", [(61, 47), (47, 61), (19, 16), (16, 300), (224, 224), (5, 7)])
    def test_only_what_is_kept_is_resampled(self, size):
        image = photo(*size)
        width, height = (int(16 * side / min(size)) for side in size)
        whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.int16)
        for place in (None, np.asarray([0.0, 0.0]), np.asarray([0.999, 0.999])):
            top, left = (
                (round((height - 16) / 2), round((width - 16) / 2))
                if place is None
                else (int(place[0] * (height - 15)), int(place[1] * (width - 15)))
            )
            cropped = whole[top : top + 16, left : left + 16]
            # Weights summed from another start round differently now and then.
            difference = np.abs(resize_and_crop(image, 16, place) - cropped)
            assert difference.max() <= 1
            assert np.mean(difference > 0) < 0.01
