"""python -m analysis attack | falsify."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from analysis.attacks import APGD, FMN, PGD, SmoothAdv, Square, TargetedAPGD
from analysis.attacks.attacked import Attack
from analysis.evaluation import evaluate
from analysis.falsification import falsify_deterministic, falsify_smoothing
from certify.campaign.cli import make_app, make_noise, parse_device, start
from certify.campaign.runner import select
from certify.campaign.store import Results, Store
from certify.campaign.weights import load_weights, model_digest, resolve
from certify.certificate import Deterministic
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Norm, Threat

app = make_app(__doc__)


def ladder(norm: Norm, steps: int, restarts: int, images: bool) -> list[Attack]:
    """Cheap attacks first, then what they leave: cross-entropy, every target, and for images no gradient at all."""
    if norm == "L1":
        return [PGD(steps, restarts=restarts), FMN(steps)]
    attacks: list[Attack] = [APGD(steps, restarts), TargetedAPGD(steps=steps)]
    return [*attacks, Square()] if images else attacks


@app.command()
def attack(
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    weights: Annotated[Path, typer.Option(help="safetensors file")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    eps: Annotated[float, typer.Option(help="budget in input units")],
    norm: Annotated[Norm, typer.Option(help="L1, L2 or Linf")] = "Linf",
    steps: Annotated[int, typer.Option(help="gradient steps of each attack")] = 100,
    restarts: Annotated[int, typer.Option(help="random starts of the first attack")] = 1,
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = ":",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    seed: Annotated[int, typer.Option(help="of the attacks' randomness")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Robust accuracy under a ladder of attacks, each on the survivors of the ones before."""
    where = parse_device(device)
    network = load_weights(resolve(model)(), weights).to(where)
    x, y, _ = select(resolve(data)(split=split), indices)
    attacks = ladder(norm, steps, restarts, images=x.ndim == 4)
    result = evaluate(network, x.to(where), y.to(where), attacks, threat=Threat(norm, eps), rng=Stream(seed))
    typer.echo(str(result))


@app.command()
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
    """Attack certificates inside their radius; status 1 if more break than chance allows."""
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
    if isinstance(certificate.guarantee, Deterministic):
        result = falsify_deterministic(
            certificate, network, x, [PGD(steps, restarts=restarts), APGD(steps)], rng=Stream(seed)
        )
    else:
        smoothing = make_noise(noise, scale, x[0].numel())
        if f"g({smoothing!r}" not in certificate.subject:
            raise InputError(f"the run is about {certificate.subject}; got the noise {smoothing!r}")
        method = SmoothAdv(smoothing, samples=samples, steps=steps, restarts=restarts)
        result = falsify_smoothing(certificate, network, x, method, rng=Stream(seed))
    typer.echo(str(result))
    if result.p_value < 1e-6:
        raise typer.Exit(1)


def _rows(results: Results, ids: torch.Tensor) -> list[int]:
    position = {int(e): i for i, e in enumerate(ids)}
    missing = [int(e) for e in results.example if int(e) not in position]
    if missing:
        raise InputError(f"the data set has no example {missing[0]}, which the store certifies")
    return [position[int(e)] for e in results.example]


if __name__ == "__main__":
    start(app)
