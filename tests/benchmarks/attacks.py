"""Our attacks beside the authors' own code at the same budget: seconds, and robust accuracy on the same images."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis.attacks import Attack
from analysis.attacks.apgd import APGD, TargetedAPGD
from analysis.attacks.square import Square
from certify import Stream, Threat
from certify.campaign.weights import load_weights
from paper_repro.data import mnist
from paper_repro.models import import_pickle, mlp, wong_kolter
from tests.benchmarks.timing import seconds

CHECKPOINTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoints"
IMAGES = 500
SQUARE_QUERIES = 500
ROUNDS = 3


def run_ours(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, robust: dict[str, int]) -> None:
    robust["ours"] = int((~attack(model, x, y, threat=threat, rng=Stream(0)).success).sum())


def run_theirs(attack: Any, model: nn.Module, x: Tensor, y: Tensor, robust: dict[str, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        z = attack.perturb(x.clone(), y.clone())
    with torch.no_grad():
        robust["theirs"] = int((model(z).argmax(1) == y).sum())


def main() -> None:
    try:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.square import SquareAttack
    except ImportError:
        print("skipped: needs the authors' AutoAttack: pip install --no-deps pyautoattack")
        return
    if not CHECKPOINTS.is_dir():
        print("skipped: needs ../shared/checkpoints")
        return
    data = mnist("test")
    x, y = data.x[:IMAGES], data.y[:IMAGES].long()
    for name, make, eps in (("NOR_MLP_B", mlp, 0.02), ("kw_mnist_0.1", wong_kolter, 0.1)):
        with tempfile.TemporaryDirectory() as folder:
            path = import_pickle(make(), CHECKPOINTS / f"{name}.pth", folder)
            model = load_weights(make(), path).eval()
        threat, fields = Threat("Linf", eps), {"norm": "Linf", "eps": eps}
        pairs = {
            "APGD-CE": (APGD(), APGDAttack(model, n_iter=100, **fields)),
            "APGD-T": (TargetedAPGD(), APGDAttack_targeted(model, n_iter=100, **fields)),
            "Square": (Square(SQUARE_QUERIES), SquareAttack(model, n_queries=SQUARE_QUERIES, **fields)),
        }
        for label, (ours, theirs) in pairs.items():
            robust: dict[str, int] = {}
            turns = {
                "ours": partial(run_ours, ours, model, x, y, threat, robust),
                "theirs": partial(run_theirs, theirs, model, x, y, robust),
            }
            time = seconds(turns, rounds=1 if label == "APGD-T" else ROUNDS)
            print(
                f"{name:14s} {label:8s} ours {time['ours']:6.2f} s, authors' {time['theirs']:6.2f} s, "
                f"ratio {time['ours'] / time['theirs']:.2f}; robust of {IMAGES}: {robust['ours']}, {robust['theirs']}"
            )
