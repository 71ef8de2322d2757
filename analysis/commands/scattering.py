"""python -m analysis scattering."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from analysis.adversarial_curvature import AdversarialLoss, curvature, inner_maximum, random_directions
from analysis.attacks.pgd import PGD
from analysis.commands.options import (
    DataOption,
    DeviceOption,
    FormatOption,
    IndicesOption,
    ModelOption,
    NormOption,
    SeedOption,
    SplitOption,
    WeightsOption,
    load_subject,
    parse_numbers,
)
from analysis.inner_maximum import Advance
from analysis.lanczos import Lanczos
from analysis.oscillation import OscillationSearch
from analysis.records import write_record
from analysis.scattering import Scattering, cosines, gradient_line, gradient_norms, scattering_table
from certify.campaign.progress import progress
from certify.campaign.tables import as_text
from certify.campaign.weights import model_digest, tensor_digest
from certify.errors import InputError, check_count
from certify.oscillation import gradient_oscillation
from certify.rng import Stream
from certify.threat import Threat

_BISECTIONS = 12
_PRODUCTS = 200


@dataclass(frozen=True, slots=True)
class _Settings:
    attack: PGD
    h: float
    top: int
    random: int
    reach: float
    points: int
    minibatch: int
    images: int
    search: OscillationSearch

    def attacks(self) -> int:
        """Runs of the attack per budget: the centre, both ends of each direction twice, the line and its jump."""
        return 1 + 4 * (self.top + self.random) + self.points + 2 + _BISECTIONS


def scattering(
    model: ModelOption,
    weights: WeightsOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="npz file")],
    eps: Annotated[str, typer.Option(help="comma-separated budgets in input units")] = "0,2/255,4/255,8/255",
    norm: NormOption = "Linf",
    h: Annotated[float, typer.Option(help="step in parameter space, of differences and cosines")] = 0.1,
    top: Annotated[int, typer.Option(help="eigenvectors of the largest eigenvalues of the frozen Hessian")] = 1,
    random: Annotated[int, typer.Option(help="random directions, the same at every budget")] = 1,
    steps: Annotated[int, typer.Option(help="of PGD, at every attack")] = 10,
    reach: Annotated[float, typer.Option(help="of the line along the first direction, either way")] = 0.5,
    points: Annotated[int, typer.Option(help="on the line")] = 21,
    minibatch: Annotated[int, typer.Option(help="examples in a minibatch")] = 10,
    oscillation: Annotated[
        int, typer.Option(help="images whose oscillation is searched and bounded; 0 for none, and no bound on the jump")
    ] = 20,
    search_steps: Annotated[int, typer.Option(help="of the search for the oscillation")] = 20,
    restarts: Annotated[int, typer.Option(help="of that search")] = 3,
    name: Annotated[str, typer.Option(help="what figures call the network; its folder's name if left out")] = "",
    indices: IndicesOption = "0:100",
    split: SplitOption = "test",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    form: FormatOption = "md",
) -> None:
    """How the parameter gradient scatters under an adversary: norms, curvature, cosines, jumps and oscillation."""
    budgets = parse_numbers(eps)
    settings = _Settings(
        PGD(steps), h, top, random, reach, points, minibatch, oscillation, OscillationSearch(search_steps, restarts)
    )
    if min(top, random, oscillation) < 0 or top + random == 0:
        raise InputError(
            f"need top, random and oscillation >= 0 and a direction; got {top}, {random} and {oscillation}"
        )
    check_count("points", points)
    if points < 2 or not (math.isfinite(reach) and reach > 0):
        raise InputError(f"need points >= 2 and a finite reach > 0; got {points} and {reach!r}")
    if out.suffix != ".npz":
        raise InputError(f"need a file that ends in .npz; got {out}")
    network, x, y = load_subject(model, weights, data, split, indices, device)
    rng = Stream(seed)
    results = []
    images = min(oscillation, len(x))
    with progress("attacks and images", len(budgets) * (settings.attacks() + images)) as bar:
        for budget in budgets:
            results.append(_measure(network, x, y, settings, Threat(norm, budget), rng, bar.advance))
    header, body = scattering_table(results)
    provenance = {
        "command": "scattering",
        "settings": repr(settings),
        "norm": norm,
        "h": h,
        "seed": seed,
        "name": name or weights.parent.name,
        "model": model,
        "model_sha256": model_digest(network),
        "data": f"{data} {split} {indices}",
        "data_sha256": tensor_digest(x, y),
        "n": len(x),
        "eigenvectors": top,
        "table": {"header": header, "body": body},
    }
    write_record(out, _arrays(results), provenance)
    typer.echo(as_text(header, body, form), nl=False)


def _measure(
    network: nn.Module, x: Tensor, y: Tensor, settings: _Settings, threat: Threat, rng: Stream, advance: Advance
) -> Scattering:
    inner = inner_maximum(settings.attack, threat=threat, rng=rng.child("attack"))

    def counted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        z = inner(model, x, y)
        advance(1)
        return z

    loss = AdversarialLoss(network, x, y, counted)
    directions = random_directions(loss, settings.random, rng=rng.child("direction")) if settings.random else None
    if settings.top:
        lanczos = Lanczos(settings.top, "largest", limit=max(_PRODUCTS, settings.top))
        vectors = lanczos(loss.frozen, rng=rng.child("lanczos")).eigenvectors
        directions = vectors if directions is None else torch.cat([vectors, directions], 1)
    assert directions is not None
    t = torch.linspace(-settings.reach, settings.reach, settings.points, dtype=torch.float64)
    line = gradient_line(loss, directions[:, 0], t, bisections=_BISECTIONS)
    found, bound = None, math.nan
    if settings.images:
        k = slice(0, settings.images)
        found = settings.search(network, x[k], y[k], threat=threat, rng=rng.child("oscillation"), advance=advance)
        at = loss.moved(line.jump.at * directions[:, 0]).double()
        switched = line.jump.switched
        bound = (
            float(gradient_oscillation(at, x[switched], y[switched], threat).sum()) / len(x) if switched.any() else 0.0
        )
    return Scattering(
        threat=threat,
        attack=settings.attack,
        seed=rng.seed,
        n=len(x),
        norms=gradient_norms(network, loss.center, y, size=settings.minibatch, rng=rng.child("minibatches")),
        curvature=curvature(loss, directions, h=settings.h),
        cosines=cosines(loss, directions, a=settings.h),
        line=line,
        oscillation=found,
        bound=bound,
    )


def _arrays(results: Sequence[Scattering]) -> dict[str, Tensor]:
    """One row per budget."""
    per_budget = {
        "gradient_norm": [r.norms.examples for r in results],
        "minibatch_norm": [r.norms.minibatches for r in results],
        "frozen": [r.curvature.frozen for r in results],
        "held": [r.curvature.held for r in results],
        "reattacked": [r.curvature.reattacked for r in results],
        "cosine_perturbation": [r.cosines.perturbation for r in results],
        "cosine_sign": [r.cosines.sign for r in results],
        "cosine_gradient": [r.cosines.gradient for r in results],
        "line_frozen": [r.line.frozen for r in results],
        "line_reattacked": [r.line.reattacked for r in results],
    }
    scalars = {
        "eps": [r.threat.eps for r in results],
        "jump_at": [r.line.jump.at for r in results],
        "jump_width": [r.line.jump.width for r in results],
        "jump_size": [r.line.jump.size for r in results],
        "jump_bound": [r.bound for r in results],
        "jump_switched": [float(r.line.jump.switched.sum()) for r in results],
    }
    oscillations = [r.oscillation for r in results if r.oscillation is not None]
    if oscillations:
        per_budget |= {
            "sampled": [o.sampled for o in oscillations],
            "certified": [o.certified for o in oscillations],
        }
    arrays = {key: torch.stack(values) for key, values in per_budget.items()}
    arrays |= {key: torch.tensor(values, dtype=torch.float64) for key, values in scalars.items()}
    return {**arrays, "t": results[0].line.t}
