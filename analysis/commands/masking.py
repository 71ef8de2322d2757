"""python -m analysis masking."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import load_subject
from analysis.masking import masking_report
from analysis.masking_attacks import Effort
from certify.campaign.weights import load_weights, resolve
from certify.rng import Stream
from certify.threat import Norm, Threat

_EFFORT = Effort()


def masking(
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    weights: Annotated[Path, typer.Option(help="safetensors file")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    eps: Annotated[float, typer.Option(help="budget in input units")],
    norm: Annotated[Norm, typer.Option(help="L1, L2 or Linf")] = "Linf",
    steps: Annotated[int, typer.Option(help="gradient steps of each attack")] = _EFFORT.steps,
    restarts: Annotated[int, typer.Option(help="random starts of PGD")] = _EFFORT.restarts,
    queries: Annotated[int, typer.Option(help="of the score-based black-box attack")] = _EFFORT.queries,
    hops: Annotated[int, typer.Option(help="boundary points of HopSkipJump")] = _EFFORT.hops,
    draws: Annotated[int, typer.Option(help="random points per example")] = _EFFORT.draws,
    surrogate: Annotated[Path | None, typer.Option(help="safetensors of the same model trained otherwise")] = None,
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = "0:200",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    seed: Annotated[int, typer.Option(help="of the attacks' randomness")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="also write the report there, as Markdown")] = None,
) -> None:
    """Look for signs of gradient masking; status 1 if any check is flagged."""
    network, x, y = load_subject(model, weights, data, split, indices, device)
    other = None if surrogate is None else load_weights(resolve(model)(), surrogate).to(x.device)
    effort = Effort(steps, restarts, queries, hops, draws)
    report = masking_report(network, x, y, threat=Threat(norm, eps), rng=Stream(seed), effort=effort, surrogate=other)
    typer.echo(str(report))
    if out is not None:
        out.write_text(f"{report}\n", encoding="utf-8")
    if report.flagged:
        raise typer.Exit(1)
