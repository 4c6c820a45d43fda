"""The common part of the experiments' configs: the settings of each scale. No config itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs import common, imagenette_folder, quickstart
from configs import paper as recipes
from lgm_jax.backbones import specs
from lgm_jax.errors import UserError
from lgm_jax.experiments import SECTION, paper

PAPER, EMBEDDED, QUICK, IMAGENETTE = SCALES = ("paper", "embedded", "quick", "imagenette")

EMBEDDED_BACKBONES = [name for name, entry in specs.NAMES.items() if entry.folder is not None]

# The four backbones that the paper compares, as the preset has them.
PAPERS = "the paper's"

# Sweeps with many runs distil against one or two backbones and evaluate on all.
ONE = {"backbones": "digits_contrastive", "evaluate": ",".join(EMBEDDED_BACKBONES)}
TWO = ONE | {"backbones": "digits_contrastive,digits_distilled"}

# The section `experiment`, by scale, where an experiment has nothing else.
_DIGITS = {"sets": "digits", "backbones": ",".join(EMBEDDED_BACKBONES)}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    PAPER: {"seeds": 1, "sets": "imagenet-100", "backbones": PAPERS},
    EMBEDDED: {"seeds": 5, **_DIGITS},
    QUICK: {"seeds": 1, **_DIGITS},
    IMAGENETTE: {"seeds": 3, "sets": "given", "backbones": ""},
}


def build(
    name: str,
    settings: Mapping[str, Mapping[str, Any]],
    arg: str | None = None,
    *,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    missing: Mapping[str, str] | None = None,
) -> ConfigDict:
    """Returns the config of an experiment.

    Args:
        name: The experiment.
        settings: Values of the section `experiment`, by scale, or under `all` for every scale.
        arg: What follows the colon: a preset of the paper's recipes, by default `paper`, for the
            paper's scale, or another scale.
        changes: Values of the recipe by dotted key, by scale as in `settings`.
        missing: By scale that the experiment does not have, the reason.

    Raises:
        UserError: If the experiment does not have that scale.
    """
    word = common.parse_arg(arg, *paper.PRESETS, *SCALES[1:]) or PAPER
    scale = PAPER if word in paper.PRESETS else word
    if missing and scale in missing:
        raise UserError(f"experiment {name} is not for {scale}: {missing[scale]}")
    config = _recipe(word)
    # Each image set selects its images; only the command line sets these keys.
    config.data.update(name=config_dict.placeholder(str), subset=config_dict.placeholder(str))
    section = {
        "name": name,
        "scale": scale,
        # `seeds`, from config.seed on; `sets`; `backbones` to distil against, one at a time.
        **_DEFAULTS[scale],
        # Backbones to evaluate on; the same by default.
        "evaluate": "",
        # The folder of each set, if they are not all in config.data.folder.
        "folders": "",
        # The workdir of another experiment, whose runs are reused.
        "share": "",
        **settings.get("all", {}),
        **settings.get(scale, {}),
    }
    for key in ("backbones", "evaluate"):
        if section[key] == PAPERS:
            section[key] = ",".join(paper.backbones(word))
    for each in ("all", scale):
        config.update_from_flattened_dict(dict((changes or {}).get(each, {})))
    with config.unlocked():
        config[SECTION] = ConfigDict(section)
    return config


def _recipe(scale: str) -> ConfigDict:
    if scale in paper.PRESETS:
        config = recipes.shared(scale)
        # The number depends on the image set.
        config.copies = config_dict.placeholder(int)
        return config
    if scale == IMAGENETTE:
        return _photos()
    config = quickstart.get_config("quick" if scale == QUICK else None)
    config.eval_backbones = ""
    if scale == QUICK:
        config.update(steps=2, checkpoint_every=2, image_every=2, log_every=1)
    else:
        # Two fifths of the quickstart's cost, for a point of accuracy or two.
        config.update(steps=500, copies=5)
    return config


def _photos() -> ConfigDict:
    """The published method on photos, in 300 steps instead of 5,000: docs/photos.md."""
    config = imagenette_folder.get_config()
    config.update(objective="lgm", steps=300, copies=3)
    config.real.source = "stream"
    # A third of the steps has all levels of the pyramid.
    config.images.grow_until = 2 / 3
    # Those of the paper: `:authors_2026`.
    config.augment.update(scale_min=0.08, noise=0.5, crops="beyond", center_crops=0, real=True)
    config.clp.update(ridge=0.5, temperature=0.1, head_per_copy=False)
    # Each backbone is trained for views of its own side.
    config.backbone.resize = "images"
    return config
