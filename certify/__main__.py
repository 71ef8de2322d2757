"""python -m certify run | verify | verify-property | table | compare | cost | import | export | salvage | audit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from certify.adaptive import AdaptiveSmoothing, ToleranceSmoothing
from certify.campaign.audit import audit_log, describe
from certify.campaign.cli import (
    AddressOption,
    ExecutorOption,
    WorkersOption,
    make_app,
    make_executor,
    make_noise,
    parse_device,
    parse_radii,
    start,
)
from certify.campaign.cost import cost_of, render_costs
from certify.campaign.logs import export_log, read_log
from certify.campaign.onnx import load_network
from certify.campaign.property_command import verify_property
from certify.campaign.runner import Method
from certify.campaign.runner import run as run_campaign
from certify.campaign.runner import verify as verify_campaign
from certify.campaign.salvage import salvage
from certify.campaign.store import Store
from certify.campaign.tables import (
    Format,
    compare_sources,
    note_on_examples,
    render,
    render_comparison,
    rows_of,
)
from certify.campaign.weights import load_weights, resolve
from certify.errors import InputError
from certify.interval import IBP
from certify.lirpa import CROWN
from certify.noise import Gaussian, Noise
from certify.renyi import RenyiSmoothing
from certify.smoothing import Smoothing
from certify.splitnoise import SplitNoise
from certify.threat import Norm, Threat
from certify.verified_radius import Bisection
from certify.voting import Execution, Precision

app = make_app(__doc__)
app.command("verify-property")(verify_property)
MethodName = Literal["fixed", "randomized", "adaptive", "tolerance", "renyi", "split"]
VerifierName = Literal["ibp", "crown-ibp", "fast-lin", "crown", "alpha-crown"]
_BATCH = {"adaptive": 64, "tolerance": 64}  # examples leave a sequential batch one by one; a large one stays full
_FIXED_BATCH = 8


def make_method(
    name: MethodName,
    noise: Noise,
    scale: float,
    n0: int,
    n: int,
    alpha: float,
    runner_up: float,
    radii: str,
    tolerance: float,
) -> Method:
    """The certifier of that name; only what it has a use for may be set."""
    if runner_up and name not in ("fixed", "renyi"):
        raise InputError(f"--runner-up is for the methods fixed and renyi; got {name}")
    match name:
        case "fixed" | "randomized":
            return Smoothing(noise, n0, n, alpha, runner_up, randomized=name == "randomized")
        case "adaptive":
            return AdaptiveSmoothing(noise, tuple(parse_radii(radii)), n0, n, alpha)
        case "tolerance":
            return ToleranceSmoothing(noise, tolerance, n0, n, alpha)
        case "split":
            return SplitNoise(scale)
        case "renyi":
            if not isinstance(noise, Gaussian):
                raise InputError(f"the method renyi is for gaussian noise; got {noise!r}")
            return RenyiSmoothing(noise.sigma, n0, n, alpha, runner_up)


@app.command()
def run(
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    weights: Annotated[Path, typer.Option(help="safetensors file")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    scale: Annotated[float, typer.Option(help="scale of the noise, in input units (sigma for gaussian)")],
    store: Annotated[Path, typer.Option(help="SQLite file; an existing one is resumed")],
    noise: Annotated[
        str, typer.Option(help="gaussian (L2), rounded_gaussian (L2, 8-bit images), laplace (L1), uniform (L1)")
    ] = "gaussian",
    method: Annotated[
        MethodName, typer.Option(help="fixed n, or as many votes as needed up to n, or split: L1 without chance")
    ] = "fixed",
    radii: Annotated[str, typer.Option(help="the grid of the method adaptive")] = "0,0.25,0.5,0.75,1.0,1.25,1.5",
    tolerance: Annotated[float, typer.Option(help="how well the method tolerance knows the radius")] = 0.05,
    n0: Annotated[int, typer.Option(help="votes that choose the class")] = 100,
    n: Annotated[int, typer.Option(help="votes that bound its probability; the most of them where adaptive")] = 100_000,
    alpha: Annotated[float, typer.Option(help="failure probability per example")] = 0.001,
    runner_up: Annotated[float, typer.Option(help="share of alpha for a bound on the runner-up; 0 for none")] = 0.0,
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = ":",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    seed: Annotated[int, typer.Option(help="the campaign's seed")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    precision: Annotated[Precision, typer.Option(help="arithmetic of the base classifier")] = "float32",
    compile_model: Annotated[bool, typer.Option("--compile", help="use torch.compile where it works")] = False,
    rows: Annotated[int, typer.Option(help="noisy copies per forward pass; thousands on a GPU")] = Execution().rows,
    batch: Annotated[int | None, typer.Option(help="examples per transaction; numbers do not depend on it")] = None,
    add: Annotated[bool, typer.Option(help="allow a second run beside the one in the store")] = False,
    executor: ExecutorOption = "serial",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Certify a data set by randomized smoothing, into a store that survives interruption."""
    by = make_executor(executor, workers, address)
    examples = resolve(data)(split=split)
    smoothing = make_noise(noise, scale, examples.x[0].numel())
    certifier = make_method(method, smoothing, scale, n0, n, alpha, runner_up, radii, tolerance)
    execution = Execution(precision=precision, compiled=compile_model, rows=rows)
    network = load_weights(resolve(model)(), weights).to(parse_device(device))
    results = run_campaign(
        store,
        certifier,
        network,
        examples,
        names=(model, f"{data} {split}"),
        indices=indices,
        seed=seed,
        execution=execution,
        batch=_BATCH.get(method, _FIXED_BATCH) if batch is None else batch,
        add=add,
        executor=by,
    )
    typer.echo(f"{len(results.example)} certificates in {store}", err=True)


def make_verifier(name: VerifierName, threat: Threat) -> IBP | CROWN:
    """The verifier of that name."""
    match name:
        case "ibp":
            return IBP(threat)
        case "crown-ibp":
            return CROWN(threat, intermediate="ibp")
        case "fast-lin":
            return CROWN(threat, slopes="fast_lin")
        case "crown":
            return CROWN(threat)
        case "alpha-crown":
            return CROWN(threat, slopes="optimized")


@app.command()
def verify(
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    eps: Annotated[float, typer.Option(help="budget in input units; with --largest the most that is tried")],
    store: Annotated[Path, typer.Option(help="SQLite file; an existing one is resumed")],
    model: Annotated[str | None, typer.Option(help="package.module:callable, () -> nn.Module; with --weights")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file")] = None,
    onnx: Annotated[Path | None, typer.Option(help="an ONNX network, in place of --model and --weights")] = None,
    method: Annotated[VerifierName, typer.Option(help="intervals, or linear bounds of rising cost")] = "ibp",
    norm: Annotated[Norm, typer.Option(help="Linf, L2 or L1")] = "Linf",
    largest: Annotated[bool, typer.Option("--largest", help="bisect for each example's largest radius")] = False,
    steps: Annotated[int, typer.Option(help="halvings with --largest")] = 10,
    indices: Annotated[str, typer.Option(help="start:stop:step of the examples")] = ":",
    split: Annotated[str, typer.Option(help="train or test")] = "test",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    batch: Annotated[int, typer.Option(help="examples per transaction")] = 100,
    add: Annotated[bool, typer.Option(help="allow a second run beside the one in the store")] = False,
    executor: ExecutorOption = "serial",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Verify a data set without chance, by interval or linear bounds, into a store that survives interruption."""
    by = make_executor(executor, workers, address)
    verifier = make_verifier(method, Threat(norm, eps))
    examples = resolve(data)(split=split)
    network, name = load_network(model, weights, onnx, examples.x.shape[1:])
    results = verify_campaign(
        store,
        Bisection(verifier, steps) if largest else verifier,
        network.to(parse_device(device)),
        examples,
        names=(name, f"{data} {split}"),
        indices=indices,
        batch=batch,
        add=add,
        executor=by,
    )
    verified = int((results.certificate.radius > 0).sum())
    typer.echo(f"{verified} of {len(results.example)} verified, in {store}", err=True)


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
    rows = rows_of(sources, parse_radii(radii), rho=rho, log_alpha=log_alpha)
    text = render(rows, form, average=mean)
    note = note_on_examples(rows)
    if note is not None:
        typer.echo(note, err=True)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@app.command()
def compare(
    sources: Annotated[list[Path], typer.Argument(help="stores and published logs that hold two runs or logs")],
    radii: Annotated[str, typer.Option(help="comma-separated")] = "0,0.25,0.5,0.75,1.0,1.25,1.5",
    pick: Annotated[str | None, typer.Option(help="which two where there are more, as 1,3; from 1, in order")] = None,
    rho: Annotated[float, typer.Option(help="failure probability of each interval")] = 0.05,
) -> None:
    """First minus second, example by example: average radius, and certified accuracy with McNemar's exact test."""
    typer.echo(render_comparison(compare_sources(sources, parse_radii(radii), pick=_pick(pick), rho=rho)), nl=False)


def _pick(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"need two numbers to pick, such as 1,3; got {text!r}") from None


@app.command("audit")
def audit_logs(
    logs: Annotated[list[Path], typer.Argument(help="published tab-separated logs of Gaussian smoothing")],
    sigma: Annotated[float | None, typer.Option(help="standard deviation of the noise; else the file name's")] = None,
    n: Annotated[list[int] | None, typer.Option(help="votes to try beside powers of ten; may be repeated")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="alpha to try beside the usual; may be repeated")] = None,
) -> None:
    """Recover n, alpha and the rounding from the printed radii, and list what is wrong in a log."""
    audits = [audit_log(log, sigma=sigma, n=n or (), alpha=alpha or ()) for log in logs]
    typer.echo("\n".join(describe(audit) for audit in audits), nl=False)


@app.command("salvage")
def salvage_store(
    damaged: Annotated[Path, typer.Argument(help="a store that is refused as damaged")],
    out: Annotated[Path, typer.Argument(help="the new store")],
) -> None:
    """Take those certificates of a damaged store that are as they were written over into a new one."""
    end = salvage(damaged, out)
    rest = "" if end.complete else "; some could not be read"
    typer.echo(f"{end.kept} rows kept, {end.refused} refused{rest}, in {out}", err=True)


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
def cost(
    stores: Annotated[list[Path], typer.Argument(help="certificate stores; their rows say what they took")],
    price: Annotated[float, typer.Option(help="dollars for one hour of one worker, such as a GPU-hour")],
    workers: Annotated[int, typer.Option(help="workers at a time")] = 1,
    times: Annotated[float, typer.Option(help="seconds per image of what is asked about, over those measured")] = 1.0,
) -> None:
    """Passes, seconds and dollars per thousand images, from what a campaign took."""
    costs = []
    for store in stores:
        with Store(store) as file:
            costs += [cost_of(r, price=price, workers=workers, times=times) for r in file.results()]
    typer.echo(render_costs(costs), nl=False)


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
