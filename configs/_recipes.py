"""The paper's recipes: a config for each of its backbones and image sets.

What the files that `tools/write_recipes.py` writes have in common. Not meant to be run by itself.
"""

from ml_collections import ConfigDict

from configs import _paper, common
from lgm_jax.data import imagenet
from lgm_jax.data.sizes import known_size

CACHED = "cached"
QUICK = "quick"

# Of a quick test, whose time is that of embedding images.
_QUICK_CLASSES = 10


def shared(preset: str) -> ConfigDict:
    """What the recipes of a preset have in common, whatever their images and backbone."""
    config = common.get_config()
    config.update_from_flattened_dict(dict(_paper.SHARED) | dict(_paper.PRESETS[preset]))
    return config


def recipe(arg: str | None, model: str, images: str) -> ConfigDict:
    """A recipe of the paper.

    Args:
        arg: What follows the colon, comma-separated: a preset of `_paper.PRESETS` (by default
            `paper`); `cached`, to compute features of one view of each real image once in place of
            reading new images at every step; `quick`, to see that it runs: a few steps, on ten
            classes at most, beside random real images alone, since the other baselines embed all.
        model: One of `_paper.MODELS`.
        images: One of `_paper.IMAGES`.

    Raises:
        UserError: If an argument is unknown, or two are presets.
    """
    given = common.parse_args(arg, tuple(_paper.PRESETS), (CACHED,), (QUICK,))
    preset = given[0] or "paper"
    chosen, backbone = _paper.IMAGES[images], _paper.MODELS[model].backbone
    config = shared(preset)
    config.copies = chosen.copies
    config.data.update(name=chosen.name, subset=chosen.subset)
    config.backbone.name = _paper.PRESET_BACKBONES.get(preset, {}).get(backbone, backbone)
    config.probe.full_augment = chosen.full_augment
    if given[1]:
        config.real.source = "cached"
        config.data.placement = "auto"
    if given[2]:
        config.baselines = "random"
        size = known_size(chosen.name, chosen.subset)
        if size is not None and size.classes > _QUICK_CLASSES:
            classes = imagenet.SUBSETS.get(chosen.subset, range(size.classes))
            config.data.subset = ",".join(map(str, classes[:_QUICK_CLASSES]))
        common.shrink(config)
    return config
