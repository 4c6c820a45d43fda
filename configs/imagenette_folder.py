"""Ten kinds of photo at 224 px on a CPU: a small ViT from a folder, Imagenette as a folder.

    python launch.py --config=configs/imagenette_folder.py --config.data.folder=IMAGENETTE \
        --config.backbone.name=WEIGHTS --workdir=runs/imagenette

`IMAGENETTE` holds `train/<class>/*` and `val/<class>/*`, `WEIGHTS` timm's `config.json` and
`model.safetensors` of a plain ViT, for example `vit_tiny_patch16_224`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    mode = common.parse_arg(arg, "quick")
    config = common.get_config()
    config.update(steps=400, copies=2, learning_rate=0.02, image_every=50, checkpoint_every=50)
    config.log_every = 10
    config.data.name = "folder"
    config.images.update(resolution=224, crop=224, grow_every=18)
    config.augment.scale_min = 0.2
    config.probe.update(solver="lbfgs", epochs=100, full_epochs=100, augment="none")
    return common.shrink(config) if mode == "quick" else config
