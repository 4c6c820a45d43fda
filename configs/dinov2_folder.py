"""Your own photos, one folder per class, for DINOv2 ViT-S/14 at 224 px.

    python launch.py --config=configs/dinov2_folder.py --config.data.folder=FOLDER \
        --workdir=runs/mine

`FOLDER` holds `<class>/*.jpg`, or `train/<class>/*.jpg` with `val/` or `test/` beside it. The
weights are downloaded once (88 MB); on a machine without network give a folder of weights in their
place: `--config.backbone.name=FOLDER`. Made for a GPU; no accuracy was measured yet.

`--config=configs/dinov2_folder.py:embedded` needs no download and takes minutes on a CPU: the
embedded backbone stands in, which was trained on digits at 32 px and sees little in a photo.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """The recipe; `:quick` takes a few steps with the embedded backbone, for tests."""
    mode = common.parse_arg(arg, "quick", "embedded")
    config = common.get_config()
    config.data.name = "folder"
    config.update(steps=1000, copies=3, learning_rate=0.01, image_every=100, checkpoint_every=100)
    config.images.grow_until = 0.4
    config.probe.update(epochs=300, full_epochs=100, augment="none")
    config.backbone.name = "digits_contrastive" if mode else "dinov2_vits14"
    return common.shrink(config) if mode == "quick" else config
