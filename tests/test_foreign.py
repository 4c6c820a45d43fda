"""Other people's images: which class each is of, in the layouts and formats that they come in."""

import numpy as np
import pytest
from PIL import Image

import launch
from lgm_jax import load_distilled
from lgm_jax.data import load_dataset
from lgm_jax.errors import UserError
from lgm_jax.foreign import read_source
from lgm_jax.opening import open_session

WNIDS = ["n01440764", "n02102040", "n02979186"]
NAMES = ["tench", "English springer", "cassette player"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(path, value=0, size=(32, 32)):
    """A grey image, whose level says of which class it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (20 * value,) * 3).save(path)


def make_photos(folder, names):
    for name in names:
        for i in range(3):
            draw(folder / "train" / name / f"{i}.jpg", i)
        draw(folder / "val" / name / "0.jpg")


def open_source(source, tmp_path, names=WNIDS, data="imagenet", ipc=1):
    """The foreign images that a run with photos of these classes would evaluate."""
    make_photos(tmp_path / "photos", names)
    dataset = load_dataset(data, folder=str(tmp_path / "photos"), resolution=32)
    return read_source(str(source), dataset, 32, ipc)


def levels(source):
    """The class that each image was drawn for."""
    return np.round(np.asarray(source.images).mean(axis=(1, 2, 3)) * 255 / 20).astype(int).tolist()


FOLDERS = {
    "WordNet names": (WNIDS, "WordNet name, all of which match"),
    "class names": (NAMES, "class name, all of which match"),
    "other separators and case": (
        ["Tench", "english_springer", "cassette-player"],
        "class name, all of which match",
    ),
    "both": ([f"{w}_{n}" for w, n in zip(WNIDS, NAMES, strict=True)], "WordNet name"),
    "numbers": (["0", "1", "2"], "the numbers of its classes, counted from 0"),
    "padded numbers": (["00000", "00001", "00002"], "the numbers of its classes, counted from 0"),
    "numbers from 1": (["1", "2", "3"], "the numbers of its classes, counted from 1"),
    "SRe2L's": (["new000", "new001", "new002"], "the numbers of its classes, counted from 0"),
    "class_3": (["class_0", "class_1", "class_2"], "the numbers of its classes, counted from 0"),
    "ImageNet's numbers": (["0", "217", "482"], "ImageNet-1k's numbers"),
    "numbered names": (["1_tench", "2_English_springer", "3_cassette_player"], "class name"),
    "numbered otherwise": (["0_a", "1_b", "2_c"], "<label>_<name> folders"),
}


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("below", ["", "syn"])
def test_folders_by_any_name(case, below, tmp_path, capsys):
    folders, rule = FOLDERS[case]
    if below:
        draw(tmp_path / "set" / "preview.png", 9, (90, 60))
    for i, name in enumerate(folders):
        draw(tmp_path / "set" / below / name / f"class{i:03d}_id000.jpg", i)
    # What lies about is no class.
    draw(tmp_path / "set" / "__MACOSX" / "x.png")
    (tmp_path / "set" / "README.md").write_text("ours")
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1, 2]
    assert f"3 images, labels by {rule}" in capsys.readouterr().out


FILES = {
    "numbers": ["0.png", "1.jpg", "2.webp"],
    "WordNet names": [f"{name}.png" for name in WNIDS],
    "numbered names": ["0_tench.png", "1_English_springer.png", "2_cassette_player.png"],
    "names": ["tench.jpg", "english springer.jpeg", "cassette_player.JPG"],
    "class_3": ["class_0.png", "class_1.png", "class_2.png"],
    "SRe2L's": ["class000_id000.jpg", "class001_id000.jpg", "class002_id000.jpg"],
}


@pytest.mark.parametrize("case", FILES)
def test_files_beside_each_other(case, tmp_path, capsys):
    for i, name in enumerate(FILES[case]):
        draw(tmp_path / "set" / "new000" / name, i)
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1, 2]
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "pattern", ["{name}_{i}.png", "{label}_{name}_{i:03d}.png", "{label}_{i}.png", "{wnid}_{i}.png"]
)
def test_several_files_of_a_class(pattern, tmp_path):
    for label, (wnid, name) in enumerate(zip(WNIDS, NAMES, strict=True)):
        for i in range(2):
            draw(tmp_path / "set" / pattern.format(name=name, wnid=wnid, label=label, i=i), label)
    source = open_source(tmp_path / "set", tmp_path, ipc=2)
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 0, 1, 1, 2, 2]


def test_folders_of_wordnet_names_take_images_of_class_names(tmp_path, capsys):
    for i, name in enumerate(NAMES):
        draw(tmp_path / "set" / name / "0.png", i)
    source = open_source(tmp_path / "set", tmp_path, data="folder")
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1, 2]
    assert "labels by class name, all of which match" in capsys.readouterr().out


def test_classes_of_own_names_take_images_of_wordnet_names(tmp_path):
    for i, name in enumerate(WNIDS):
        draw(tmp_path / "set" / name / "0.png", i)
    names = sorted(NAMES)
    source = open_source(tmp_path / "set", tmp_path, names, "folder")
    assert [NAMES[level] for level in levels(source)] == [names[label] for label in source.labels]


def test_names_in_another_encoding_match(tmp_path):
    for i, name in enumerate(("cafe\u0301", "Ma\u0308use ", "stra\u200bsse")):
        draw(tmp_path / "set" / name / "0.png", i)
    names = ["caf\u00e9", "m\u00e4use", "strasse"]
    source = open_source(tmp_path / "set", tmp_path, names, "folder")
    assert sorted(zip(source.labels.tolist(), levels(source), strict=True)) == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize("sizes", [((32, 48), (64, 32), (9, 9)), ((32, 48),) * 3])
def test_images_of_other_shapes_are_treated_as_real_ones(sizes, tmp_path, capsys):
    for i, (name, size) in enumerate(zip(NAMES, sizes, strict=True)):
        draw(tmp_path / "set" / name / "0.png", i, size)
    source = open_source(tmp_path / "set", tmp_path)
    assert source.images.shape[1] == source.images.shape[2]
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1, 2]
    assert "not all square and of one size" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["bytes", "channels first", "named", "float64"])
def test_arrays_of_another_program(kind, tmp_path):
    images = np.zeros((3, 32, 32, 3), np.uint8) + np.asarray([0, 20, 40], "u1")[:, None, None, None]
    arrays = {"images": images, "labels": np.arange(3)}
    if kind == "channels first":
        arrays["images"] = images.transpose(0, 3, 1, 2)
    elif kind == "named":
        arrays["class_names"] = np.asarray(NAMES[::-1])
    elif kind == "float64":
        arrays["images"] = images / 255
    np.savez(tmp_path / "set.npz", **arrays)
    source = open_source(tmp_path / "set.npz", tmp_path)
    expected = [2, 1, 0] if kind == "named" else [0, 1, 2]
    assert (source.labels.tolist(), levels(source)) == (expected, [0, 1, 2])


def refused(source, tmp_path, **options):
    with pytest.raises(UserError) as error:
        open_source(source, tmp_path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["n01440764", "n02102040", "n09999999"], ["n09999999 there", "cassette player here"]),
        (["tench", "English springer"], ["2 classes, but imagenet has 3", "cassette player"]),
        (["a", "b", "c"], ["a, b, c", "tench", "or by numbers from 0 to 2"]),
        (["0", "1", "3"], ["0, 1, 3", "or by numbers from 0 to 2"]),
        (["x0", "y1", "z2"], ["or by numbers from 0 to 2"]),
    ],
)
def test_classes_that_do_not_fit_are_named(folders, words, tmp_path):
    for name in folders:
        draw(tmp_path / "set" / name / "0.png")
    line = refused(tmp_path / "set", tmp_path)
    assert all(word in line for word in words), line


def test_numbers_that_may_mean_two_things_are_refused(tmp_path):
    wnids = ["n01440764", "n01443537", "n01484850"]
    for i in range(3):
        draw(tmp_path / "set" / str(i) / "0.png")
    make_photos(tmp_path / "photos", wnids)
    arguments = ["--config=configs/dinov2_folder.py:quick", "--config.data.name=imagenet"]
    arguments += [f"--config.data.folder={tmp_path / 'photos'}", "--config.stages=probe"]
    arguments += ["--config.data.subset=2,0,1", f"--config.images.source={tmp_path / 'set'}"]
    config, *_ = launch.parse(["launch.py", *arguments, f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="may be the data set's labels or ImageNet-1k's"):
        open_session(config, str(tmp_path / "run"), overwrite=False)


def test_counts_that_differ_are_named_with_what_to_do(tmp_path):
    for name in NAMES:
        draw(tmp_path / "set" / name / "0.png")
    draw(tmp_path / "set" / "tench" / "1.png")
    line = refused(tmp_path / "set", tmp_path)
    assert "1 to 2 images per class (1 of English springer, 2 of tench)" in line
    assert "keep 1 of each" in line


@pytest.mark.parametrize("where", ["images.pt", "set/images.pt"])
def test_pickles_are_refused_with_the_way_out(where, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / where).write_bytes(b"\x80\x04cbuiltins\nexit\n(tR.")
    source = tmp_path / where.split("/")[0]
    assert "numpy.savez('images.npz'" in refused(source, tmp_path)


def test_real_photos_by_mistake_are_refused_before_they_are_read(tmp_path):
    for name in NAMES:
        for i in range(40):
            path = tmp_path / "set" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"would not be read")
    assert "40 images per class: add --config.ipc=40" in refused(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["n02085620-chihuahua", "n02085782-japanese_spaniel"], ["n02085620", "n02085782"]),
        (["n02085620-chihuahua", "n02085782-japanese_spaniel"], ["Chihuahua", "Japanese spaniel"]),
        (["goldfish, Carassius auratus", "tench, Tinca tinca"], ["n01443537", "n01440764"]),
        (["001.Sooty_Albatross", "002.Laysan_Albatross"], ["sooty albatross", "Laysan_Albatross"]),
        (["cat", "dog"], ["1.cat", "2.dog"]),
        (["dog", "cat"], ["7 dog", "9 cat"]),
    ],
)
def test_both_names_may_say_more(names, folders, tmp_path):
    for name, folder in zip(names, folders, strict=True):
        draw(tmp_path / "set" / folder / "0.png", sorted(names).index(name))
    source = open_source(tmp_path / "set", tmp_path, names, "folder")
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([1, 2, 3], [0, 1, 2]), ([[2], [0], [1]], [2, 0, 1]), ([0, 217, 482], [0, 1, 2])],
)
def test_numbers_of_arrays_mean_what_those_of_folders_do(labels, expected, tmp_path):
    images = np.zeros((3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.asarray(labels))
    assert open_source(tmp_path / "set.npz", tmp_path).labels.tolist() == expected


def test_labels_of_arrays_may_be_names(tmp_path):
    images = np.zeros((3, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.asarray(NAMES[::-1]))
    assert open_source(tmp_path / "set.npz", tmp_path).labels.tolist() == [2, 1, 0]


def write_metadata(folder, labels):
    lines = [f'{{"file_name": "{i}.png", "label": {label}}}' for i, label in labels.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_metadata_label_files_that_lie_beside_each_other(tmp_path, capsys):
    labels = {0: 2, 1: 0, 2: 1}
    for i, label in labels.items():
        draw(tmp_path / "set" / f"{i}.png", label)
    write_metadata(tmp_path / "set", labels)
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source) == [0, 1, 2]
    printed = capsys.readouterr().out
    assert "labels by the numbers of its classes, counted from 0" in printed
    assert "note: set: metadata.jsonl says which image is of which class" in printed
    assert "left out" not in printed


@pytest.mark.parametrize(
    ("labels", "words"), [({0: 0, 1: 1}, "no class of 2.png"), ({0: 0, 1: 1, 2: 5}, "0, 1, 5")]
)
def test_metadata_that_do_not_label_all_files_are_refused(labels, words, tmp_path):
    for i in range(3):
        draw(tmp_path / "set" / f"{i}.png", i)
    write_metadata(tmp_path / "set", labels)
    assert words in refused(tmp_path / "set", tmp_path)


TABLES = {
    "names": "file_name,label\n{0},cassette player\n{1},tench\n{2},English springer\n",
    "numbers": "file_name,label\n{0},2\n{1},0\n{2},1\n",
    "numbers from 1": "filename;class\n{0};3\n{1};1\n{2};2\n",
    "ImageNet's numbers": "image,target\n{0},482\n{1},0\n{2},217\n",
    "WordNet names": "path\tlabel\n{0}\tn02979186\n{1}\tn01440764\n{2}\tn02102040\n",
    "both": "label,file,class_name\n9,{0},cassette player\n9,{1},tench\n9,{2},English springer\n",
    "whole numbers as floats": "file,label\n{0},2.0\n{1},0.0\n{2},1.0\n,\n",
    "numbers first": "label,file\n2,{0}\n0,{1}\n1,{2}\n",
    "Windows": "\ufeffFile_Name;Label\r\n.\\{0};2\r\n{1};0\r\n{2};1\r\n",
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("below", ["", "syn"])
def test_a_table_beside_the_files_says_their_classes(case, below, tmp_path, capsys):
    for i, level in enumerate((2, 0, 1)):
        draw(tmp_path / "set" / below / f"{i}.png", level)
    table = TABLES[case].format("0.png", "1.png", "2.png")
    (tmp_path / "set" / "labels.csv").write_text(table, encoding="utf-8")
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source)
    assert sorted(source.labels) == [0, 1, 2]
    printed = capsys.readouterr().out
    assert "note: set: labels.csv says which image is of which class" in printed
    assert "left out" not in printed


@pytest.mark.parametrize("names", [["0", "1", "2"], ["syn/0.png", "syn/1.png", "syn/2.png"]])
def test_tables_name_files_in_many_ways(names, tmp_path):
    for i, level in enumerate((2, 0, 1)):
        draw(tmp_path / "set" / "syn" / f"{i}.png", level)
    rows = [f"{name},{level}" for name, level in zip(names, (2, 0, 1), strict=True)]
    (tmp_path / "set" / "train.csv").write_text("\n".join(["image_id,label", *rows]))
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source) == [0, 1, 2]


def test_a_table_says_the_classes_of_numbered_folders_too(tmp_path):
    for i, level in enumerate((2, 0, 1)):
        draw(tmp_path / "set" / str(i) / "a.png", level)
    rows = [f"{i}/a.png,{NAMES[level]}" for i, level in enumerate((2, 0, 1))]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["file,label", *rows]))
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.csv", "file,label\n0.png,2\n1.png,0\n", "says no class of 2.png"),
        ("labels.csv", "file,label\n0.png,2\n0.png,0\n", "line 3: 0.png has another class above"),
        ("labels.csv", "file,a,b\n0.png,2,1\n1.png,0,1\n", "which column has their classes"),
        ("labels.csv", "0\n2\n1\n", "labels.csv may say which image is of which class, but is"),
        ("labels.csv", "", "labels.csv: it is empty"),
        ("labels.txt", "0.png 2\n1.png 0\n", "labels.txt may say which image is of which class"),
        ("set_labels.npy", "", "set_labels.npy may say which image is of which class"),
        ("metadata.json", "{}", "write a labels.csv with the columns file_name and label"),
    ],
)
def test_what_may_label_the_files_is_never_ignored(name, text, words, tmp_path):
    for i in range(3):
        draw(tmp_path / "set" / f"{i}.png", i)
    (tmp_path / "set" / name).write_text(text)
    assert words in refused(tmp_path / "set", tmp_path)


def test_numbers_of_a_table_count_beyond_ten(tmp_path):
    for i in range(12):
        draw(tmp_path / "set" / f"{i:02d}.png", i)
    rows = [f"{i:02d}.png,{i}" for i in range(12)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["file,label", *rows]))
    images, labels, names = load_distilled(tmp_path / "set")
    assert names == [str(i) for i in range(12)]
    assert np.round(images.mean(axis=(1, 2, 3)) * 255 / 20).astype(int).tolist() == labels.tolist()


def test_two_tables_are_refused(tmp_path):
    for i in range(3):
        draw(tmp_path / "set" / f"{i}.png", i)
    for name in ("a.csv", "b.csv"):
        (tmp_path / "set" / name).write_text("file,label\n0.png,0\n1.png,1\n2.png,2\n")
    assert "both a.csv and b.csv name the images: keep one" in refused(tmp_path / "set", tmp_path)


def test_a_table_of_something_else_is_none_of_labels(tmp_path):
    for i in range(3):
        draw(tmp_path / "set" / f"{i}.png", i)
    (tmp_path / "set" / "log.csv").write_text("step,loss\n0,0.5\n1,0.3\n2,0.1\n")
    (tmp_path / "set" / "README.md").write_text("ours")
    (tmp_path / "set" / "empty.csv").touch()
    (tmp_path / "set" / "latin.csv").write_bytes("image;caf\u00e9\n".encode("latin-1"))
    (tmp_path / "set" / "._labels.csv").write_text("left behind")
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source) == [0, 1, 2]


def test_an_image_may_be_called_label(tmp_path):
    for i in range(3):
        draw(tmp_path / "set" / f"label_{i}.png", i)
    source = open_source(tmp_path / "set", tmp_path)
    assert source.labels.tolist() == levels(source) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 32, 32, 1), (3, 1, 32, 32)])
def test_grey_arrays_are_read_as_colour(shape, tmp_path, capsys):
    images = np.zeros((3, 32, 32), np.uint8) + np.asarray([0, 20, 40], np.uint8)[:, None, None]
    np.savez(tmp_path / "set.npz", images=images.reshape(shape), labels=np.arange(3))
    source = open_source(tmp_path / "set.npz", tmp_path)
    assert levels(source) == source.labels.tolist() == [0, 1, 2]
    assert "note: set.npz: grey images are read as RGB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.full((3, 32, 32, 3), 200), "int64 (3, 32, 32, 3): expected 3 channels or 1, of 8 bits"),
        (np.zeros((3, 32, 32, 4), np.uint8), "uint8 (3, 32, 32, 4): expected 3 channels or 1"),
        (np.full((3, 32, 32, 3), 60000, np.uint16), "uint16 (3, 32, 32, 3): expected 3 channels"),
    ],
)
def test_arrays_that_are_not_read_say_what_is(images, words, tmp_path):
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(3))
    assert words in refused(tmp_path / "set.npz", tmp_path)
