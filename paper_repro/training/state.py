"""The state of an unfinished run on disk."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from certify import InputError
from certify.campaign.weights import tensor_digest
from paper_repro.models.checkpoint import save_tensors
from paper_repro.training.history import History

STATE = "training.safetensors"


def check_same(where: Path, settings: dict[str, Any], held: dict[str, Any]) -> None:
    """Refuse a folder that holds a run with other settings.

    Raises:
        InputError: the rule is broken; the message names each difference.
    """
    if held != settings:
        keys = [k for k in sorted({*held, *settings}) if held.get(k) != settings.get(k)]
        differences = "; ".join(f"{k}: there {held.get(k)!r}, asked {settings.get(k)!r}" for k in keys)
        raise InputError(f"{where} holds a run with other settings ({differences}); choose another folder")


def is_finite(model: nn.Module) -> bool:
    """Whether every weight and buffer is a number."""
    return all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    memory: dict[str, Tensor],
    progress: tuple[int, History],
    settings: dict[str, Any],
) -> None:
    """Write all that a run needs to go on: after so many steps, with this history."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"memory.{k}": v for k, v in memory.items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
    step, history = progress
    metadata = {"step": str(step), "settings": json.dumps(settings), "history": json.dumps(asdict(history))}
    save_tensors(path, tensors, {**metadata, "sha256": _digest(metadata, tensors)})


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    text = json.dumps([dict(metadata), names, tensor_digest(*(tensors[name] for name in names))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def restore_state(
    path: Path, model: nn.Module, optimizer: Optimizer, memory: dict[str, Tensor], settings: dict[str, Any]
) -> tuple[int, History]:
    """Load the state of a killed run.

    Returns: The step to go on from, 0 where there is no state, and the history so far.

    Raises:
        InputError: the file is damaged, or of a run with other settings.
    """
    if not path.is_file():
        return 0, History()
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        digest = metadata.pop("sha256", None)  # states of earlier versions have none
        if digest is not None and digest != _digest(metadata, tensors):
            raise ValueError("it is not as it was written")
        held, step = dict(json.loads(metadata["settings"])), int(metadata["step"])
        history = History(**json.loads(metadata["history"]))
        check_same(path.parent, settings, held)
        _put_back(tensors, model, optimizer, memory)
    except InputError:
        raise
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path} is not the state of a training run ({error!r}); remove it to start anew") from error
    return step, history


def _put_back(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer, memory: dict[str, Tensor]) -> None:
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    device = next(model.parameters()).device
    memory |= {k.removeprefix("memory."): v.to(device) for k, v in tensors.items() if k.startswith("memory.")}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
