"""A trained network on disk: `weights.safetensors`, and a `config.json` that states its SHA-256 and how it was made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from certify import InputError
from certify.campaign.weights import CONFIG, file_digest

WEIGHTS = "weights.safetensors"


def _partial(path: Path) -> Path:
    """Where a file is written before it takes its place. What lay there is gone: a link would lead elsewhere."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    return partial


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a kill the old one or the new one is there, whole."""
    partial = _partial(path)
    with partial.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file so that after a kill the old one or the new one is there, whole."""
    partial = _partial(path)
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, dict(metadata or {}))
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_checkpoint(model: nn.Module, folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Write a model's weights and configuration.

    Args:
        model: Its state dict is saved.
        folder: Made where missing.
        config: How the weights came to be, as plain values; `sha256` is added.

    Returns: The weights file, which `certify.campaign.weights.load_weights` reads.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS
    save_tensors(path, model.state_dict())
    text = json.dumps({**config, "sha256": file_digest(path)}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / CONFIG, text.encode())
    return path


def import_pickle(model: nn.Module, pickled: str | Path, folder: str | Path) -> Path:
    """Convert somebody's pickled state dict into a checkpoint of ours. The only place that opens a pickle.

    Keys are matched by order and shape, because others name their layers differently; a leading `Normalize` of the
    model keeps its own values where the pickle has none.

    Args:
        model: The architecture; its parameters are overwritten.
        pickled: A file that `torch.load(weights_only=True)` reads: a state dict, or {"state_dict": [state dict]}.
        folder: Where the checkpoint goes.

    Raises:
        InputError: the file holds anything but plain tensors (nothing of it is run), or the tensors do not fit.
    """
    try:
        content = torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle fail in any way: IndexError, struct.error, AssertionError ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{pickled} is refused: it is not a pickle of plain tensors ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    state = state[0] if isinstance(state, list) and len(state) == 1 else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{pickled}: need a state dict of tensors; got {type(state).__name__}")
    for theirs, value in state.items():
        # Others are copied with a warning, or not at all.
        if value.is_complex() or value.is_quantized or value.is_meta or value.layout != torch.strided:
            raise InputError(f"{pickled}: need dense real tensors; got {value.layout}, {value.dtype} for {theirs}")
    own = model.state_dict()
    names = [k for k in own if k.rsplit(".", 1)[-1] not in ("mean", "std")]
    if len(names) != len(state):
        raise InputError(f"{pickled}: need {len(names)} tensors for this model; got {len(state)}")
    for name, (theirs, value) in zip(names, state.items(), strict=True):
        if own[name].shape != value.shape:
            raise InputError(
                f"{pickled}: need shape {tuple(own[name].shape)} for {name}; got {theirs} {tuple(value.shape)}"
            )
        own[name] = value
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(f"{pickled} does not fit the model: {error}") from error
    return save_checkpoint(model, folder, {"imported_from": Path(pickled).name})
