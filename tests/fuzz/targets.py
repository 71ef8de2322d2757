"""The readers of what others hand in, each on one file, and the files to begin from."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from analysis.records import read_record
from certify.campaign import Store, read_log
from certify.campaign.audit import audit_log
from certify.campaign.salvage import salvage
from certify.campaign.weights import file_digest, load_weights
from certify.layers import Normalize
from paper_repro.models import import_pickle
from paper_repro.training.state import restore_state

CORPUS = Path(__file__).resolve().parent / "corpus"
SETTINGS = {"seed": 0}
Reader = Callable[[Path], object]


def network() -> nn.Sequential:
    """Small, so that a file of it is small; with buffers of several types."""
    return nn.Sequential(Normalize([0.5], [0.25]), nn.Flatten(), nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def log(path: Path) -> None:
    read_log(path)


def audit(path: Path) -> None:
    audit_log(path, sigma=0.5)


def weights(path: Path) -> None:
    load_weights(network(), path)


def config(path: Path) -> None:
    """Read as the config.json beside good weights."""
    folder = path.with_name("checkpoint")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(path.read_bytes())
    copy = folder / "weights.safetensors"
    copy.write_bytes((CORPUS / "weights" / "plain.safetensors").read_bytes())
    load_weights(network(), copy)
    assert json.loads(path.read_bytes())["sha256"] == file_digest(copy), "other weights than the config states"


def state(path: Path) -> None:
    model = network()
    step, history = restore_state(path, model, optimizer_of(model), {}, SETTINGS)
    assert step >= 0
    assert isinstance(history.rows, list)


def pickled(path: Path) -> None:
    import_pickle(network(), path, path.with_name("imported"))


def record(path: Path) -> None:
    read_record(path)


def store(path: Path) -> None:
    with Store(path) as file:
        file.results()
        file.published()


def saved(path: Path) -> None:
    out = path.with_name("saved.sqlite")
    out.unlink(missing_ok=True)
    salvage(path, out)
    with Store(out) as file:
        file.results()


TARGETS: dict[str, tuple[Reader, str]] = {
    "log": (log, "logs"),
    "audit": (audit, "logs"),
    "weights": (weights, "weights"),
    "config": (config, "configs"),
    "state": (state, "states"),
    "pickle": (pickled, "pickles"),
    "record": (record, "records"),
    "store": (store, "stores"),
    "salvage": (saved, "stores"),
}
"""Each reader, and the folder of its corpus."""
