"""Write the corpus anew: `python -m tests.fuzz.make_corpus`. Small files of every kind that some reader takes."""

import gc
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from certify import Certificate, PerExample
from certify.campaign import Published, Store
from paper_repro.models import save_checkpoint
from paper_repro.training.history import History
from paper_repro.training.state import save_state
from tests.fuzz.targets import CORPUS, SETTINGS, network, optimizer_of

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
LOGS = {
    "seconds": ["0\t3\t3\t0.378\t1\t15.4", "20\t7\t-1\t0.0\t0\t15.6", "40\t4\t0\t1.09\t0\t14.4"],
    "clock": ["0\t3\t3\t0.378\t1\t0:00:14.367581", "5\t1\t1\t1.5\t1\t1 day, 0:00:01", "10\t9\t9\t0.01\t1\t26:00:00"],
    "exponents": ["0\t1\t1\t1e-3\t1\t1e2", "1\t1\t1\t12345678.5\t1\t0"],
    "running_count": ["0\t3\t3\t0.378\t1\t15.4", "20\t7\t7\t0.2\t2\t15.6", "40\t4\t0\t1.09\t2\t14.4"],
}


def fresh(name: str) -> Path:
    folder = CORPUS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def trained() -> tuple[torch.nn.Sequential, torch.optim.Optimizer]:
    """A network after one step, with momentum."""
    torch.manual_seed(0)
    model = network()
    optimizer = optimizer_of(model)
    model(torch.rand(4, 1, 2)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def make_store(path: Path, rows: int) -> None:
    number = torch.arange(rows)
    made = Certificate(
        prediction=number % 10,
        radius=number / 7.0 + torch.zeros(rows, dtype=torch.float64),
        norm="L2",
        subject="g(Gaussian(sigma=0.5))",
        guarantee=PerExample(0.001),
        method="Smoothing()",
        samples=torch.full((rows,), 110),
        counts=torch.stack([number, 100 - number], 1),
    )
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute("VACUUM")
    with Store(path, create=True) as store:
        store.open_run({"model": "nets:small", "seed": 0}, {}).append(made, number.tolist(), [3] * rows, seconds=1.0)
        store.add_log(Published.of("paper", [(9, 1, 1, 0.953, True, 0.3)]))


def main() -> None:
    """Write every file."""
    folder = fresh("logs")
    for name, lines in LOGS.items():
        (folder / f"{name}.tsv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    model, optimizer = trained()
    folder, scratch = fresh("weights"), fresh("scratch")
    save_checkpoint(model, scratch, {"method": "Erm()", "training": {"epochs": 3, "keep": [1, 2]}})
    shutil.copy(scratch / "weights.safetensors", folder / "plain.safetensors")
    save_file({"x": torch.zeros(0)}, folder / "other.safetensors", {"note": "metadata"})
    save_file({k: v.half() for k, v in model.state_dict().items()}, folder / "half.safetensors")
    shutil.copy(scratch / "config.json", fresh("configs") / "config.json")
    shutil.rmtree(scratch)
    folder = fresh("states")
    history = History([{"epoch": 1, "loss": 0.5, "seconds": 1.0}], 2, 0.7, 0.1, 0.01, 3.0)
    save_state(folder / "state.safetensors", model, optimizer, {"delta": torch.ones(2)}, (7, history), SETTINGS)
    folder = fresh("pickles")
    plain = {k: v for k, v in model.state_dict().items() if k not in ("0.mean", "0.std")}
    torch.save(plain, folder / "zip.pth")
    torch.save({"state_dict": [plain]}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    folder = fresh("records")
    arrays = {"values": np.arange(3.0), "counts": np.arange(4).reshape(2, 2), "provenance": np.array('{"seed": 0}')}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    folder = fresh("stores")
    make_store(folder / "store.sqlite", 12)
    gc.collect()


if __name__ == "__main__":
    main()
