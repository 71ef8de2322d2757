"""python -m figures report: measure a network and write its page, or write the page of a store."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import parse_numbers
from certify.campaign.cli import parse_device
from certify.campaign.weights import file_digest, load_weights, resolve
from certify.errors import InputError
from certify.threat import Norm
from figures.report import report
from figures.report_run import Plan, measure
from paper_repro.recipes.execute import commit

_PLAN = Plan()


def report_command(
    out: Annotated[Path, typer.Option(help="folder of the page, report.html")],
    store: Annotated[Path | None, typer.Option(help="write the page of this store; nothing is computed")] = None,
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")] = "",
    weights: Annotated[Path | None, typer.Option(help="safetensors file; none: as the callable returns them")] = None,
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")] = "",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = ":50",
    norm: Annotated[Norm, typer.Option(help="Linf or L2; smoothing is in L2 either way")] = _PLAN.norm,
    eps: Annotated[str, typer.Option(help="budget of attacks, masking and Lipschitz constants, such as 8/255")] = "0.1",
    sigma: Annotated[float, typer.Option(help="of the smoothing noise")] = _PLAN.sigma,
    n: Annotated[int, typer.Option(help="votes per image")] = _PLAN.n,
    images: Annotated[int, typer.Option(help="of which masking, curvature, Lipschitz are measured")] = _PLAN.images,
    seed: Annotated[int, typer.Option(help="of everything that draws")] = _PLAN.seed,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    rho: Annotated[float, typer.Option(help="failure probability of each interval over images")] = 0.05,
) -> None:
    """One self-contained page about a network: what is proved, what was found, and what it cost."""
    if (store is None) == (not model) or bool(model) != bool(data):
        raise InputError("need either --model and --data, or --store")
    if store is None:
        budgets = parse_numbers(eps)
        if len(budgets) != 1:
            raise InputError(f"need one eps; got {eps!r}")
        plan = Plan(norm, budgets[0], sigma, n, images, seed)
        made = resolve(model)()
        network = (made.eval() if weights is None else load_weights(made, weights)).to(parse_device(device))
        words = ["python", "-m", "figures", "report", "--model", model]
        words += [] if weights is None else ["--weights", str(weights)]
        words += ["--data", data, "--split", split, "--indices", indices, "--norm", norm, "--eps", eps]
        words += ["--sigma", f"{sigma:g}", "--n", str(n), "--images", str(images), "--seed", str(seed)]
        words += ["--device", device, "--rho", f"{rho:g}", "--out", str(out)]
        known = "as the callable returned them" if weights is None else f"file with SHA-256 {file_digest(weights)}"
        about = {"command": shlex.join(words), "commit": commit() or "not in a repository", "weights": known}
        names = (model, f"{data} {split}")
        examples = resolve(data)(split=split)
        store = measure(network, examples, names=names, indices=indices, plan=plan, out=out, about=about)
    typer.echo(str(report(store, out, rho=rho)))
