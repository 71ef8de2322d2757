"""python -m analysis falsify."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from analysis.attacks.apgd import APGD
from analysis.attacks.attacked import Attack
from analysis.attacks.fmn import FMN
from analysis.attacks.pgd import PGD
from analysis.attacks.smoothadv import SmoothAdv
from analysis.falsification import certified, falsify_deterministic, falsify_smoothing
from certify.campaign.cli import make_noise
from certify.campaign.progress import progress
from certify.campaign.results import Results
from certify.campaign.store import Store
from certify.campaign.weights import load_weights, model_digest, resolve
from certify.certificate import Deterministic
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Norm


def deterministic_ladder(norm: Norm, steps: int, restarts: int) -> list[Attack]:
    """What tries to break deterministic certificates: APGD knows no L1."""
    attacks: list[Attack] = [PGD(steps, restarts=restarts)]
    return [*attacks, FMN(steps) if norm == "L1" else APGD(steps)]


def falsify(
    store: Annotated[Path, typer.Argument(help="a certificate store")],
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    weights: Annotated[Path, typer.Option(help="safetensors file")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    noise: Annotated[str, typer.Option(help="of the smoothed classifier, as it was certified")] = "gaussian",
    scale: Annotated[float, typer.Option(help="of that noise")] = 0.5,
    run_number: Annotated[int, typer.Option("--run", help="which run of the store, from 1")] = 1,
    steps: Annotated[int, typer.Option(help="gradient steps per restart")] = 100,
    restarts: Annotated[int, typer.Option(help="starts")] = 10,
    samples: Annotated[int, typer.Option(help="noisy copies per gradient")] = 32,
    limit: Annotated[int, typer.Option(help="attack the first so many certificates")] = 1000,
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    seed: Annotated[int, typer.Option(help="of the attack's randomness")] = 0,
) -> None:
    """Attack certificates inside their radius; status 1 if more break than chance allows.

    Certificates of lattice points alone (split noise, rounded_gaussian) are refused: the attacks move off the lattice.
    """
    network = load_weights(resolve(model)(), weights)
    with Store(store) as file:
        runs = file.results()
    if not 1 <= run_number <= len(runs):
        raise InputError(f"need a run between 1 and {len(runs)}; got {run_number}")
    results = runs[run_number - 1]
    if results.settings["model_sha256"] != model_digest(network):
        raise InputError(f"the run is about another model: {results.settings['model_sha256']}")
    examples = resolve(data)(split=split)
    x = examples.x[_rows(results, examples.id)][:limit]
    certificate = results.certificate.first(limit)
    rng, total = Stream(seed), len(certified(certificate, x))
    if isinstance(certificate.guarantee, Deterministic):
        attacks = deterministic_ladder(certificate.norm, steps, restarts)
        with progress("falsify", total) as bar:
            result = falsify_deterministic(certificate, network, x, attacks, rng=rng, watch=lambda: bar.advance(1))
    else:
        smoothing = make_noise(noise, scale, x[0].numel())
        if f"g({smoothing!r}" not in certificate.subject:
            raise InputError(f"the run is about {certificate.subject}; got the noise {smoothing!r}")
        method = SmoothAdv(smoothing, samples=samples, steps=steps, restarts=restarts)
        with progress("falsify", total) as bar:
            result = falsify_smoothing(certificate, network, x, method, rng=rng, watch=lambda: bar.advance(1))
    typer.echo(str(result))
    if result.p_value < 1e-6:
        raise typer.Exit(1)


def _rows(results: Results, ids: torch.Tensor) -> list[int]:
    position = {int(e): i for i, e in enumerate(ids)}
    missing = [int(e) for e in results.example if int(e) not in position]
    if missing:
        raise InputError(f"the data set has no example {missing[0]}, which the store certifies")
    return [position[int(e)] for e in results.example]
