"""What a changed key costs: another run, more steps, probes again, or nothing; and what never
changes: released defaults, from which everything that is recorded is told.
"""

import dataclasses
import functools

import pytest

from configs import common, quickstart
from lgm_jax import (
    augment,
    backbones,
    baselines,
    data,
    distill,
    features,
    images,
    objectives,
    opening,
    probe,
    runs,
    settings,
)
from lgm_jax.stages import probing

RUN, STEPS, PROBES, NOTHING = "another run", "more steps", "probes again", "nothing"

# By key: what it is changed to, what that costs, and what else is set before and after.
CLP, FRESH = {"objective": "clp"}, {"probe.augment": "fresh", "probe.solver": "adam"}
STREAM = {"real.source": "stream", "real.views": 1}
CHANGES = {
    "seed": (1, RUN, {}),
    "ipc": (2, RUN, {}),
    "steps": (900, STEPS, {}),
    "copies": (3, RUN, {}),
    "objective": ("sfm", RUN, {}),
    "learning_rate": (0.1, RUN, {}),
    "schedule": ("cosine", RUN, {}),
    "labels": ("soft", RUN, {}),
    "labels_learning_rate": (0.1, RUN, {"labels": "soft"}),
    "head_std": (1.0, RUN, {}),
    "clp.ridge": (2.0, RUN, CLP),
    "clp.temperature": (0.3, RUN, CLP),
    "clp.head_per_copy": (True, RUN, CLP),
    "microbatch": (7, NOTHING, {}),
    "deterministic": (True, NOTHING, {}),
    "images.kind": ("pixels", RUN, {}),
    "images.resolution": (40, RUN, {}),
    "images.crop": (24, RUN, {}),
    "images.init": ("noise", RUN, {}),
    "images.decorrelate": (False, RUN, {"images.grey": False}),
    "images.grey": (False, RUN, {}),
    "images.start_resolution": (2, RUN, {"images.grow_every": 9}),
    "images.grow_every": (33, RUN, {}),
    # A run keeps the growth that it began with; of a new one it is another.
    "images.grow_until": (0.5, RUN, {}),
    "images.grow_delay": (1, RUN, {}),
    "augment.preset": ("paper", RUN, {}),
    "augment.distill": (False, RUN, {"real.views": 1}),
    "augment.center_crops": (1, RUN, {}),
    "augment.real": (False, RUN, {"real.views": 1}),
    "augment.crops": ("beyond", RUN, {}),
    "augment.flip": (0.25, RUN, {}),
    "augment.scale_min": (0.5, RUN, {}),
    "augment.scale_max": (0.9, RUN, {}),
    "augment.noise": (0.1, RUN, {}),
    "augment.noise_mean": (0.1, RUN, {}),
    "augment.noise_std": (0.1, RUN, {}),
    "data.name": ("digits_spurious", RUN, {}),
    "data.subset": ("0,1", RUN, {}),
    "data.placement": ("device", NOTHING, STREAM),
    "data.workers": (1, NOTHING, STREAM),
    "data.sampling": ("balanced", RUN, STREAM),
    "data.on_bad_image": ("skip", NOTHING, {}),
    "backbone.name": ("digits_distilled", RUN, {}),
    "backbone.weights": ("2,1", RUN, {"backbone.name": "digits_contrastive,digits_masked"}),
    "backbone.normalization": ("imagenet", RUN, {}),
    "backbone.dtype": ("bfloat16", RUN, {}),
    "backbone.params_dtype": ("bfloat16", RUN, {}),
    "backbone.attention": ("xla", NOTHING, {}),
    "backbone.pooling": ("mean", RUN, {}),
    "backbone.position_offset": (0.1, NOTHING, {}),
    # The backbone and its crops have one side.
    "backbone.resize": ("images", NOTHING, {}),
    "real.source": ("cached", RUN, {}),
    "real.views": (4, RUN, {}),
    "real.cache": ("elsewhere", NOTHING, {}),
    "eval_backbones": ("digits_masked", PROBES, {}),
    "baselines": ("random", NOTHING, {}),
    "probe.epochs": (9, PROBES, {}),
    "probe.full_epochs": (9, PROBES, {}),
    "probe.batch": (9, PROBES, FRESH),
    "probe.full_batch": (9, PROBES, FRESH),
    "probe.learning_rate": (9.0, PROBES, FRESH),
    "probe.drop_last": (True, PROBES, FRESH),
    "probe.decay": ("epoch", PROBES, FRESH),
    "probe.runs": (9, PROBES, {}),
    "probe.ddof": (0, NOTHING, {}),
    "probe.augment": ("none", PROBES, {}),
    "probe.full_augment": ("none", PROBES, {}),
    "probe.noise": (True, PROBES, {}),
    "probe.views": (9, PROBES, {}),
    "probe.share_views": (True, PROBES, {}),
    "probe.solver": ("adam", PROBES, {}),
    "probe.ridge": (9.0, PROBES, {}),
    # Probes besides those that there are.
    "probe.teacher": ("kd", NOTHING, FRESH),
    "probe.split": ("val", PROBES, {}),
    "checkpoint_every": (9, NOTHING, {}),
    "keep_checkpoints": (9, NOTHING, {}),
    "log_every": (9, NOTHING, {}),
    "profile": (9, NOTHING, {}),
    "image_every": (9, NOTHING, {}),
    "track": ("tensorboard", NOTHING, {}),
    "stages": ("report", NOTHING, {}),
}
# Folders of photos tell what these do: tests/test_data*.py and tests/test_launch*.py.
ELSEWHERE = {
    *("data.folder", "data.val_fraction", "data.split_seed", "data.crop", "images.source"),
    *("backbone.revision", "data.label"),
}
# As the others are set, these change nothing.
IDLE = {
    "labels_learning_rate": (0.1, {}),
    "clp.ridge": (2.0, {}),
    "clp.temperature": (0.3, {"objective": "sfm"}),
    "clp.head_per_copy": (True, {}),
    "head_std": (1.0, CLP),
    "images.decorrelate": (False, {}),
    "images.start_resolution": (2, {"images.kind": "pixels"}),
    "images.grow_every": (9, {"images.kind": "pixels"}),
    "images.grow_until": (0.9, {"images.grow_every": 9}),
    "augment.center_crops": (1, {"augment.distill": False, "real.views": 1}),
    "augment.real": (False, {"augment.distill": False, "real.views": 1}),
    "augment.noise_std": (0.1, {"augment.noise": 0.0}),
    "data.sampling": ("balanced", {}),
    "real.views": (4, {"real.source": "stream"}),
    "probe.batch": (9, {}),
    "probe.learning_rate": (9.0, {}),
    "probe.drop_last": (True, {}),
    "probe.decay": ("epoch", {}),
    "probe.ridge": (9.0, FRESH),
    "probe.views": (9, {"probe.augment": "none", "probe.full_augment": "none"}),
}


@pytest.fixture
def open_with(tmp_path, monkeypatch):
    """Opens a session of the quickstart with some keys changed, in a folder of its own."""
    monkeypatch.setattr(data, "load_dataset", functools.cache(data.load_dataset))
    monkeypatch.setattr(backbones, "load", functools.cache(backbones.load))
    monkeypatch.setattr(runs, "provenance", dict)
    numbers = iter(range(100))

    def open_with(changes):
        config = quickstart.get_config()
        config.update_from_flattened_dict(changes)
        common.check(config)
        folder = tmp_path / str(next(numbers))
        session = opening.open_session(config, str(folder), overwrite=False)
        session.run.close()
        return session

    return open_with


def cost(before, after):
    """What it costs to go from one session to another."""
    if before.identity != after.identity:
        return RUN
    if before.config.steps != after.config.steps:
        return STEPS
    probes = [
        {
            method: probing.Row(session, method).inputs(backbone.fingerprint)
            for method in ("distilled", *baselines.METHODS)
            for backbone in session.eval_backbones
        }
        for session in (before, after)
    ]
    return NOTHING if probes[0] == probes[1] else PROBES


def test_every_key_is_in_the_table():
    assert set(CHANGES) | ELSEWHERE == set(common.KEYS)
    assert not set(CHANGES) & ELSEWHERE


def test_a_changed_key_costs_what_it_must_and_no_more(open_with):
    for base in {tuple(sorted(given.items())) for _, _, given in CHANGES.values()}:
        before = open_with(dict(base))
        for key, (value, expected, given) in CHANGES.items():
            if tuple(sorted(given.items())) != base:
                continue
            after = open_with({**given, key: value})
            if key == "steps":
                # Begun anew, it would grow in another way.
                growth = "images.grow_every"
                assert after.identity[growth] != before.identity.get(growth)
                every = before.task.parametrisation.grow_every
                after = open_with({**given, key: value, growth: every})
            assert cost(before, after) == expected, key


def test_a_key_that_others_make_idle_costs_nothing(open_with):
    for key, (value, given) in IDLE.items():
        assert cost(open_with(given), open_with({**given, key: value})) == NOTHING, key


def defaults(cls):
    """The fields of a dataclass that have a default, with it."""
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }


def test_released_defaults_stay():
    """A new meaning is a new name or a new value; see `lgm_jax.identity`."""
    plain = {"flip": 0.5, "scale": (0.08, 1.0), "ratio": (0.75, 4 / 3), "crops": "inside"}
    plain |= {"noise": 0.5, "noise_mean": 0.0, "noise_std": 0.2}
    assert defaults(augment.Augmentation).items() >= plain.items()
    assert defaults(features.Views) == {"augmentation": None, "count": 1}
    assert (
        defaults(probe.Protocol).items()
        >= {
            "views": 1,
            "solver": "adam",
            "share_views": False,
            "learning_rate": 0.001,
            "ridge": 0.01,
            "targets": "labels",
        }.items()
    )
    assert (
        defaults(distill.Distillation).items()
        >= {
            "objective": objectives.LGM(head_std=0.01),
            "ipc": 1,
            "copies": 10,
            "augmentation": augment.Augmentation(**plain),
            "center_crop_copies": 0,
            "labels": "hard",
            "schedule": None,
        }.items()
    )
    assert defaults(objectives.LGM).items() >= {"head_std": 0.01}.items()
    assert (
        defaults(objectives.CLP).items()
        >= {"ridge": 0.001, "temperature": 0.1, "head_per_copy": False}.items()
    )
    start = {"init": "noise", "decorrelate": True, "grey": False}
    assert defaults(images.Pixels).items() >= start.items()
    grows = {"start_resolution": 1, "grow_every": 200, "grow_delay": 0}
    assert defaults(images.Pyramid).items() >= (start | grows).items()
    assert (
        defaults(settings.Updates).items()
        >= {
            "learning_rate": 0.002,
            "schedule": "constant",
            "steps": 0,
            "labels_learning_rate": 0.01,
        }.items()
    )
    assert (
        defaults(settings.RealViews).items()
        >= {"source": "stream", "views": 1, "sampling": "shuffle", "augmented": True}.items()
    )


def test_released_names_stay():
    """The names by which a record tells what is not at its default."""
    assert objectives.OBJECTIVES == {
        "lgm": objectives.LGM,
        "sfm": objectives.SFM,
        "clp": objectives.CLP,
    }
    assert {"pyramid": images.Pyramid, "pixels": images.Pixels} == images.PARAMETRISATIONS


def test_a_recipe_of_the_default_config_is_the_default_recipe():
    """So that what a run leaves out of its record is what the library does by itself."""
    recipe = settings.make_recipe(common.get_config(), 10, 224)
    task = distill.Distillation(10, images.Pyramid(256), 224, augmentation=recipe.task.augmentation)
    # Optimisers are functions, which equal none but themselves.
    assert dataclasses.asdict(recipe.task).keys() == dataclasses.asdict(task).keys()
    assert recipe.task == task
    assert recipe.updates == settings.Updates()
    assert recipe.real == settings.RealViews()


def test_released_keys_keep_their_defaults():
    config = common.flatten(common.get_config())
    assert {key for key, value in config.items() if value is None} == {
        *("microbatch", "images.resolution", "images.crop", "images.grow_every", "augment.flip"),
        *("augment.scale_min", "augment.scale_max", "augment.noise", "augment.noise_mean"),
        *("augment.noise_std", "data.val_fraction", "data.workers", "probe.full_batch"),
        *("augment.crops", "probe.full_augment"),
    }
    assert config.items() >= DEFAULTS.items()


DEFAULTS = {
    "seed": 0,
    "ipc": 1,
    "steps": 5000,
    "copies": 10,
    "objective": "lgm",
    "learning_rate": 0.002,
    "schedule": "constant",
    "labels": "hard",
    "labels_learning_rate": 0.01,
    "head_std": 0.01,
    "clp.ridge": 0.001,
    "clp.temperature": 0.1,
    "clp.head_per_copy": False,
    "deterministic": False,
    "images.kind": "pyramid",
    "images.init": "noise",
    "images.source": "",
    "images.decorrelate": True,
    "images.grey": False,
    "images.start_resolution": 1,
    "images.grow_until": 0.32,
    "images.grow_delay": 0,
    "augment.preset": "paper",
    "augment.distill": True,
    "augment.center_crops": 0,
    "augment.real": True,
    "data.name": "digits",
    "data.folder": "",
    "data.subset": "",
    "data.on_bad_image": "stop",
    "data.split_seed": 0,
    "data.placement": "auto",
    "data.crop": "auto",
    "data.sampling": "shuffle",
    "backbone.name": "digits_contrastive",
    "backbone.weights": "",
    "backbone.normalization": "native",
    "backbone.dtype": "float32",
    "backbone.params_dtype": "float32",
    "backbone.attention": "auto",
    "backbone.pooling": "native",
    "backbone.position_offset": 0.0,
    "backbone.revision": "",
    "real.source": "stream",
    "real.views": 1,
    "real.cache": "",
    "eval_backbones": "",
    "baselines": "random,centroids,neighbors,full",
    "probe.epochs": 1000,
    "probe.full_epochs": 100,
    "probe.batch": 100,
    "probe.learning_rate": 0.001,
    "probe.runs": 5,
    "probe.augment": "fresh",
    "probe.noise": False,
    "probe.views": 10,
    "probe.share_views": False,
    "probe.drop_last": False,
    "probe.decay": "update",
    "probe.ddof": 1,
    "probe.solver": "adam",
    "probe.ridge": 0.01,
    "probe.teacher": "",
    "probe.split": "test",
    "checkpoint_every": 500,
    "keep_checkpoints": 2,
    "log_every": 50,
    "profile": 0,
    "image_every": 500,
    "track": "",
    "stages": "distill,probe,baselines,report",
}
