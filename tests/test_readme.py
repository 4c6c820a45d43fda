"""What the README and the recipes promise."""

import re
import shutil
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import launch
from configs import common
from lgm_jax import backbones, settings
from lgm_jax.backbones import specs
from lgm_jax.data import imagenet, sources
from lgm_jax.data.digits import load_digits
from lgm_jax.features import Views, embed
from tests.marks import slow

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("[!_]*.py") if path.stem != "paper")


def snippets(word):
    """The Python examples of the README and the page on the library that contain a word."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/library.md"))
    return [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in code]


def train_accuracy(features, labels, kernel, bias):
    scores = np.asarray(features) @ np.asarray(kernel) + np.asarray(bias)
    return np.mean(np.argmax(scores, axis=-1) == np.asarray(labels))


@pytest.fixture
def clone(finished, tmp_path):
    """A folder in which `runs/quickstart` is a finished, very short run."""
    shutil.copytree(finished, tmp_path / "runs" / "quickstart")
    (tmp_path / "lgm_jax").symlink_to(ROOT / "lgm_jax")
    return tmp_path


@pytest.mark.slow
def test_readme_ablation_example_gives_an_image_gradient():
    (code,) = snippets("image_gradient")
    names: dict = {}
    exec(code, names)
    features = jax.random.normal(jax.random.key(1), (20, names["backbone"].feature_dim))
    gradient = names["image_gradient"](names["levels"], features, jnp.arange(20) % 10)
    assert [leaf.shape for leaf in gradient] == [leaf.shape for leaf in names["levels"]]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in gradient)


@pytest.mark.slow
def test_readme_library_example_distils_images_that_teach(capsys):
    (code,) = snippets("distill.make_step")
    assert len(code.strip().splitlines()) <= 19
    names: dict = {}
    exec(code, names)
    # Measured: 83.1 %, and 74 with random digits in their place.
    assert names["top1"][0] > 79


def test_readme_jax_example_learns_the_images(clone, monkeypatch):
    monkeypatch.chdir(clone)
    (code,) = snippets("load_distilled")
    names: dict = {}
    exec(code, names)
    head = names["head"]
    assert train_accuracy(names["features"], names["labels"], head["kernel"], head["bias"]) == 1


EMBEDDED = [name for name, entry in specs.NAMES.items() if entry.folder is not None]


@pytest.mark.parametrize("name", [EMBEDDED[0], *map(slow, EMBEDDED[1:])])
@pytest.mark.slow
def test_embedded_backbone_is_small_and_linearly_separates_the_digits(name):
    weights = specs.NAMES[name].folder / "model.safetensors"
    assert weights.stat().st_size <= 3_000_000
    digits, backbone = load_digits(), backbones.load(name)
    train, test = (
        embed(backbone, digits.splits[split], Views(32), jax.random.key(0)).whole()[0]
        for split in ("train", "test")
    )
    head = LogisticRegression(C=1.0, max_iter=3000).fit(train, digits.splits["train"].labels)
    assert head.score(test, digits.splits["test"].labels) >= 0.95


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_built_and_checked(path):
    argv = ["launch.py", f"--config={path}", "--workdir=unused"]
    config, workdir, overwrite, _ = launch.parse(argv)
    assert set(common.flatten(config)) == set(common.KEYS)
    assert (workdir, overwrite) == ("unused", False)
    if path.stem != "common":
        quick, *_ = launch.parse([argv[0], f"{argv[1]}:quick", argv[2]])
        assert quick.steps < config.steps


def test_data_page_names_every_source_subset_and_key():
    page = (ROOT / "docs" / "data.md").read_text()
    keys = [key for key in common.KEYS if key.startswith("data.")]
    for name in [*sources.SOURCES, *imagenet.SUBSETS]:
        assert f"`{name}`" in page, name
    for key in keys:
        assert f"config.{key}" in page, key


def test_data_page_says_how_arrays_become_a_data_set():
    page = (ROOT / "docs" / "data.md").read_text()
    (code,) = re.findall(r"    (from lgm_jax import data\n    .*)\n", page)
    names = {"images": np.zeros((20, 9, 9), np.uint8), "labels": np.arange(20) % 2}
    exec(textwrap.dedent(f"    {code}"), names)
    assert names["dataset"].num_classes == 2


def test_defaults_are_the_papers():
    config = common.get_config()
    assert (config.steps, config.copies, config.learning_rate) == (5000, 10, 0.002)
    assert (config.head_std, config.augment.preset) == (0.01, "paper")
    assert settings.make_recipe(config, 10, 224).task.parametrisation.grow_every == 200
    assert (config.probe.epochs, config.probe.batch, config.probe.augment) == (1000, 100, "fresh")
