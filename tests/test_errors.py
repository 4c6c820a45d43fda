"""The errors of bad input: `ValueError`s whose message arrives as it was written."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import launch
from lgm_jax import data, distill, errors, images, settings


def test_bad_input_is_a_value_error_in_a_notebook():
    assert issubclass(errors.UserError, ValueError)
    with pytest.raises(ValueError, match="cosin"):
        settings.Updates(schedule="cosin")
    with pytest.raises(ValueError, match="crop must be a whole number from 1 to 8, not 9"):
        distill.Distillation(num_classes=2, parametrisation=images.Pyramid(8), crop=9)
    with pytest.raises(ValueError, match="unknown data set 'cifr10'"):
        data.load_dataset("cifr10", resolution=8)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_quota_or_file_is_found_behind_other_errors(number):
    full = errors.Full(os.strerror(number), "a/file")
    caused = RuntimeError("the checkpoint failed")
    caused.__cause__ = OSError(number, os.strerror(number), "a/file")
    assert errors.find_full(caused) == full
    # Orbax passes on the message alone.
    assert errors.find_full(ValueError(f"INTERNAL: {full.message}")) == full._replace(where=None)
    assert errors.find_full(OSError(errno.EACCES, os.strerror(errno.EACCES))) is None


@pytest.mark.parametrize("name", ["vit_1033", "quetzal"])
def test_an_unknown_name_is_not_answered_with_all_of_many(name):
    known = [f"vit_{number}_base" for number in range(1000, 2500)]
    text = str(errors.unknown_name("backbone", name, known))
    assert ("did you mean vit_1033_base" in text) == (name == "vit_1033")
    assert 0 < text.count("_base") <= 12


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        # What a config file raises passes absl and ml_collections, which wrap `ValueError`s.
        (["--config={file}"], "error: data.name must be mine\n"),
        (["--config={file}:x"], "error: unknown preset 'x': known: quick\n"),
        (["--config={file}:y"], "error: the config file cannot be loaded: ValueError: not ours\n"),
    ],
)
def test_what_a_config_says_is_said_in_its_words(tmp_path, capsys, arguments, line):
    file = tmp_path / "mine.py"
    file.write_text(
        "from lgm_jax.errors import UserError, unknown_name\n"
        "def get_config(preset=''):\n"
        "    if preset == 'y':\n"
        "        raise ValueError('not ours')\n"
        "    raise unknown_name('preset', preset, ['quick']) if preset else UserError(\n"
        "        'data.name must be mine')\n"
    )
    given = [argument.format(file=file) for argument in arguments]
    assert launch.main(["launch.py", *given, f"--workdir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == line


def test_a_file_of_one_array_is_called_so_and_no_more(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(
        errors.UserError, match=r"^cannot read .*one\.npy: it is one array; expected"
    ):
        data.load_dataset("npz", folder=str(tmp_path / "one.npy"), resolution=8)
