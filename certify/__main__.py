"""python -m certify run | table | import | export."""

from pathlib import Path
from typing import Annotated

import typer

from certify.campaign.cli import make_app, parse_device, parse_radii, start
from certify.campaign.logs import export_log, read_log
from certify.campaign.runner import run as run_campaign
from certify.campaign.store import Store
from certify.campaign.tables import Format, render, rows_of
from certify.campaign.weights import load_weights, resolve
from certify.errors import InputError
from certify.noise import Gaussian, Noise
from certify.smoothing import Smoothing
from certify.voting import Execution, Precision

app = make_app(__doc__)
NOISES = {"gaussian": Gaussian}


def make_noise(name: str, scale: float) -> Noise:
    """The noise of that name, at that scale."""
    if name not in NOISES:
        raise InputError(f"need a noise among {', '.join(NOISES)}; got {name!r}")
    return NOISES[name](scale)


@app.command()
def run(
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    weights: Annotated[Path, typer.Option(help="safetensors file")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    scale: Annotated[float, typer.Option(help="scale of the noise, in input units (sigma for gaussian)")],
    store: Annotated[Path, typer.Option(help="SQLite file; an existing one is resumed")],
    noise: Annotated[str, typer.Option(help="smoothing distribution: gaussian")] = "gaussian",
    n0: Annotated[int, typer.Option(help="votes that choose the class")] = 100,
    n: Annotated[int, typer.Option(help="votes that bound its probability")] = 100_000,
    alpha: Annotated[float, typer.Option(help="failure probability per example")] = 0.001,
    runner_up: Annotated[float, typer.Option(help="share of alpha for a bound on the runner-up; 0 for none")] = 0.0,
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = ":",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    seed: Annotated[int, typer.Option(help="the campaign's seed")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    precision: Annotated[Precision, typer.Option(help="arithmetic of the base classifier")] = "float32",
    compile_model: Annotated[bool, typer.Option("--compile", help="use torch.compile where it works")] = False,
    rows: Annotated[int, typer.Option(help="noisy copies per forward pass; thousands on a GPU")] = Execution().rows,
    batch: Annotated[int, typer.Option(help="examples per transaction; numbers do not depend on it")] = 8,
    add: Annotated[bool, typer.Option(help="allow a second run beside the one in the store")] = False,
) -> None:
    """Certify a data set by randomized smoothing, into a store that survives interruption."""
    method = Smoothing(make_noise(noise, scale), n0, n, alpha, runner_up)
    execution = Execution(precision=precision, compiled=compile_model, rows=rows)
    network = load_weights(resolve(model)(), weights).to(parse_device(device))
    results = run_campaign(
        store,
        method,
        network,
        resolve(data)(split=split),
        names=(model, f"{data} {split}"),
        indices=indices,
        seed=seed,
        execution=execution,
        batch=batch,
        add=add,
    )
    typer.echo(f"{len(results.example)} certificates in {store}", err=True)


@app.command()
def table(
    sources: Annotated[list[Path], typer.Argument(help="stores and published logs")],
    radii: Annotated[str, typer.Option(help="comma-separated")] = "0,0.25,0.5,0.75,1.0,1.25,1.5",
    form: Annotated[Format, typer.Option("--format", help="md, csv or tex")] = "md",
    mean: Annotated[bool, typer.Option(help="add mean and standard deviation over the rows")] = False,
    rho: Annotated[float, typer.Option(help="failure probability of the population bounds")] = 0.05,
    log_alpha: Annotated[float, typer.Option(help="alpha assumed for published logs")] = 0.001,
    out: Annotated[Path | None, typer.Option(help="write here instead of printing")] = None,
) -> None:
    """Certified accuracy at radii, with population lower bounds, and the average certified radius."""
    text = render(rows_of(sources, parse_radii(radii), rho=rho, log_alpha=log_alpha), form, average=mean)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("import")
def import_log(
    logs: Annotated[list[Path], typer.Argument(help="published tab-separated logs")],
    store: Annotated[Path, typer.Option(help="SQLite file; made where missing")],
) -> None:
    """Check published logs line by line and keep them in a store, as published rows and never as certificates."""
    published = [read_log(log) for log in logs]
    with Store(store, create=True) as file:
        for log in published:
            file.add_log(log)
            typer.echo(f"{log.name}: {len(log.example)} rows, {int(log.correct.sum())} correct", err=True)


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="a certificate store")],
    log: Annotated[Path, typer.Argument(help="the tab-separated file to write")],
    run_number: Annotated[int, typer.Option("--run", help="which run of the store, from 1")] = 1,
    digits: Annotated[int, typer.Option(help="decimals of the radius, rounded down")] = 3,
) -> None:
    """Write one run of a store as a published tab-separated log."""
    with Store(store) as file:
        results = file.results()
    if not 1 <= run_number <= len(results):
        raise InputError(f"need a run between 1 and {len(results)}; got {run_number}")
    export_log(results[run_number - 1], log, digits=digits)


if __name__ == "__main__":
    start(app)
