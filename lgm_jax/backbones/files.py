"""A backbone's files: in a folder, or on the Hugging Face hub; weights in safetensors only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgm_jax.errors import UserError

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_INDEX = f"{WEIGHTS}.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLES = ("pytorch_model.bin", "model.bin", "*.pth", "*.pt", "*.pkl", "*.ckpt")


@dataclasses.dataclass(frozen=True)
class Files:
    """What a backbone is loaded from.

    Attributes:
        origin: The folder's base name, or the hub's repository.
        config: Content of `config.json`; empty where a table's entry takes its place.
        preprocessor: Content of `preprocessor_config.json`; empty if there is none.
        weights: The safetensors files.
        revision: The hub's commit, if it is from there.
    """

    origin: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    weights: Sequence[Path]
    revision: str | None = None

    def sha256(self) -> dict[str, str]:
        """Hash of each weights file, by name."""
        hashes = {}
        for path in self.weights:
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes

    def __str__(self) -> str:
        return self.origin


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of some safetensors files, each read when it is asked for."""

    def __init__(self, handles: Mapping[str, Any]):
        self._handles = handles

    def __getitem__(self, key: str) -> np.ndarray:
        handle = self._handles[key]
        kind = handle.get_slice(key).get_dtype()
        if kind not in _FLOATS:
            raise UserError(f"the weights' {key} is {kind}: only {', '.join(_FLOATS)} are read")
        return handle.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


@contextlib.contextmanager
def open_tensors(paths: Sequence[Path]) -> Iterator[Tensors]:
    """Opens safetensors files without reading more than their headers.

    Raises:
        UserError: If one is not a whole safetensors file.
    """
    import safetensors

    with contextlib.ExitStack() as stack:
        handles: dict[str, Any] = {}
        for path in paths:
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"{path} is truncated or not a safetensors file: {error}"
                ) from error
            handles |= dict.fromkeys(handle.keys(), handle)
        yield Tensors(handles)


def from_folder(folder: Path) -> Files:
    """The files of a local folder; nothing is downloaded.

    Raises:
        UserError: If a file is missing or not what it should be.
    """
    preprocessor = {}
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} has no {CONFIG}: a backbone's folder needs timm's or transformers'"
        )
    config = _read_json(folder / CONFIG)
    if (folder / PREPROCESSOR).is_file():
        preprocessor = _read_json(folder / PREPROCESSOR)
    weights = [folder / WEIGHTS]
    if (folder / _INDEX).is_file():
        weights = [folder / name for name in _shards(folder / _INDEX)]
    for path in weights:
        if not path.is_file():
            raise UserError(_no_safetensors(folder, path.name))
    return Files(folder.resolve().name, config, preprocessor, weights)


def from_hub(repo: str, revision: str | None = None, *, need_config: bool = True) -> Files:
    """The files of a repository of the Hugging Face hub: from the cache, or downloaded into it.

    A progress bar, the cache's place, offline mode and tokens are `huggingface_hub`'s. Where the
    hub does not hand a repository out, for whatever reason, what the cache holds of it is used.

    Args:
        repo: `owner/name`.
        revision: A branch, tag or commit; the main branch by default.
        need_config: Whether `config.json` must be there.

    Raises:
        UserError: If it cannot be reached or read, or holds weights of another kind only.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
    )

    def fetch(name: str, *, optional: bool = False) -> Path | None:
        """The file, or `None` where the repository has no such file."""
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo, name, revision=revision, local_files_only=refusal is not None
                )
            )
        except LocalEntryNotFoundError:
            if refusal is None:
                raise
            cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
            # What `hf download` has filled holds no record of files that there are none of.
            if optional or cached is huggingface_hub._CACHED_NO_EXIST:
                return None
            # The hub's own words, where it has answered.
            if isinstance(refusal, HfHubHTTPError):
                raise refusal from None
            raise
        except EntryNotFoundError:
            return None

    with _explaining(repo, revision):
        refusal = _refusal(repo, revision)
        # The weights first: what cannot be loaded is said before anything else is fetched.
        index, whole = None, fetch(WEIGHTS, optional=True)
        if whole is None:
            index = fetch(_INDEX)
            if index is None:
                raise UserError(
                    f"{repo} on the hub has no {WEIGHTS}, and other formats are not read (a pickle "
                    f"can run any code): `hf download {repo} --local-dir=FOLDER`, and give FOLDER, "
                    "to be told how to convert them"
                )
            weights = []
            for name in _shards(index):
                shard = fetch(name)
                if shard is None:
                    raise UserError(f"{repo} on the hub has no {name}, which its index names")
                weights.append(shard)
        else:
            weights = [whole]
        config = preprocessor = None
        if need_config:
            config, preprocessor = fetch(CONFIG), fetch(PREPROCESSOR, optional=True)
            if config is None:
                raise UserError(f"{repo} on the hub has no {CONFIG}")
    return Files(
        repo,
        _read_json(config) if config else {},
        _read_json(preprocessor) if preprocessor else {},
        weights,
        # The cache keeps a file under snapshots/<commit>/.
        weights[0].parent.name,
    )


def _refusal(repo: str, revision: str | None) -> Exception | None:
    """Why the hub does not hand a repository out; `None` where it does.

    Asked once: a download waits half a minute for a network that is not there.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repo, WEIGHTS, revision=revision)
        )
    except EntryNotFoundError:
        # Left to the download, which records in the cache that there is no such file.
        return None
    except HFValidationError:
        raise
    # Offline, gated, out of order, or what the installed HTTP library raises where nobody answers.
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _explaining(repo: str, revision: str | None) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into one line that says what to do."""
    from huggingface_hub import errors

    folder = f"or put {CONFIG} and {WEIGHTS} into a folder and give its path"
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo} on the hub is gated: accept its terms on its page there, then `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} on the hub has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo} is neither a folder here nor a repository on the hub that you may read"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a folder nor a name on the hub: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UserError(
            f"{repo} is not in the cache, and the hub cannot be reached: on a machine with network "
            f"run `hf download {repo}` and copy the cache (HF_HOME), {folder}"
        ) from error
    # Whatever library the installed version speaks HTTP with raises errors of its own.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot download {repo} from the hub: {reason}; try again, {folder}"
        ) from (error)


def _no_safetensors(folder: Path, name: str) -> str:
    text = f"{folder} has no {name}: weights are read from safetensors only"
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        # The other files, with the statistics, stay beside it, whichever library wrote them.
        text += (
            f", {pickles[0]} is a pickle and can run any code: convert it with `python -c "
            '"import torch, safetensors.torch as s; '
            f"t = torch.load({str(folder / pickles[0])!r}, weights_only=True); "
            "s.save_file({k: v.clone().contiguous() for k, v in t.items()}, "
            f'{str(folder / WEIGHTS)!r})"`'
        )
    return text


def _shards(index: Path) -> list[str]:
    content = _read_json(index).get("weight_map")
    strings = isinstance(content, dict) and all(isinstance(v, str) for v in content.values())
    if not content or not strings:
        raise UserError(f"{index} has no weight_map")
    names = sorted(set(content.values()))
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside its folder: {name}")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    # Broken text, broken JSON, and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content
