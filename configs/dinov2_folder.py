"""Your own photos: one folder per class.

    python launch.py --config=configs/dinov2_folder.py --config.data.folder=FOLDER \
        --workdir=runs/mine

`FOLDER` holds `<class>/*.jpg`, or `train/<class>/*.jpg` with `val/` or `test/` beside it.

DINOv2 itself is not ported yet: until then the embedded backbone stands in, which was trained on
digits at 32 px and sees little in a photo. A folder with timm's `config.json` and
`model.safetensors` of a plain ViT works: `--config.backbone.name=FOLDER_OF_WEIGHTS`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` runs everything in seconds, for tests."""
    mode = common.parse_arg(arg, "quick")
    config = common.get_config()
    config.data.name = "folder"
    config.update(steps=1000, copies=3, learning_rate=0.01, image_every=100, checkpoint_every=100)
    config.images.grow_every = 50
    config.probe.update(epochs=300, full_epochs=100, augment="none")
    return common.shrink(config) if mode == "quick" else config
