"""What a run is about: a network's weights, a data set, and the digests by which both are known."""

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from certify.errors import InputError

CONFIG = "config.json"


class Data(Protocol):
    """Examples: x (n, ...) float32, y (n,) int64, id (n,) int64, the position in the original data set."""

    @property
    def x(self) -> Tensor: ...  # noqa: D102
    @property
    def y(self) -> Tensor: ...  # noqa: D102
    @property
    def id(self) -> Tensor: ...  # noqa: D102


def resolve(name: str) -> Callable[..., Any]:
    """The object that `package.module:callable` names.

    Raises:
        InputError: the form is wrong, the module does not import, or it holds no such callable.
    """
    module, colon, attribute = name.partition(":")
    parts = module.split(".")
    if not colon or not all(part.isidentifier() for part in (*parts, attribute)):
        raise InputError(f"need package.module:callable; got {name!r}")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"cannot import {module!r} for {name!r}: {error}") from error
    if not hasattr(imported, attribute):
        raise InputError(f"module {module!r} has no {attribute!r}")
    found = getattr(imported, attribute)
    if not callable(found):
        raise InputError(f"need a callable; {name!r} is {type(found).__name__}")
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and values."""
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model's architecture, as printed, and of every entry of its state."""
    state = model.state_dict()
    names = "\n".join([repr(model), *state])
    return hashlib.sha256((names + tensor_digest(*state.values())).encode()).hexdigest()


def _check_digest(path: Path, found: str) -> None:
    """Compare with the config beside the file, if there is one."""
    config = path.with_name(CONFIG)
    if not config.is_file():
        return
    try:
        expected = json.loads(config.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{config} is not a checkpoint's config (no sha256): {error!r}") from error
    if found != expected:
        raise InputError(f"{path} is not the file that {config.name} describes: need sha256 {expected}; got {found}")


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a safetensors file into a model and put it in evaluation mode; nothing in the file is executed.

    Where a `config.json` lies beside the file, the SHA-256 it states must be the file's; nothing else of it is used.
    The file is read once: what was checked is what is loaded.

    Args:
        model: The architecture; changed in place and returned.
        path: A `.safetensors` file.

    Raises:
        InputError: the file is missing or cannot be read, is no safetensors file, was changed after it was written, or
            does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"need a weights file; no file at {path}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error}") from error
    _check_digest(path, hashlib.sha256(raw).hexdigest())
    try:
        state = load(raw)
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}). A pickle is never opened here; "
            "paper_repro.models.import_pickle converts one whose content is plain tensors"
        ) from error
    # torch would drop the imaginary parts and only warn.
    complex_ones = [name for name, value in state.items() if value.is_complex()]
    if complex_ones:
        raise InputError(f"{path} does not fit the model: need real numbers; got complex ones in {complex_ones[0]!r}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the model: {error}") from error
    return model.eval()
