"""Measure one's own network for a report: a modest campaign into a store, and beside it what no row holds.

An interrupted report goes on where it stopped: rows are resumed by the store, and a panel is kept once it is done.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analysis.attacks.fmn import FMN
from analysis.campaign import attack_campaign
from analysis.commands.attack import ladder
from analysis.hessian import Hessian
from analysis.lanczos import Lanczos
from analysis.lipschitz import sampled_lipschitz
from analysis.masking import masking_report
from analysis.masking_attacks import Effort
from analysis.trace import HutchPlusPlus
from certify.campaign.attack_rows import attack_results
from certify.campaign.progress import progress
from certify.campaign.runner import run, select, verify
from certify.campaign.store import Store
from certify.campaign.weights import Data, model_digest, tensor_digest
from certify.errors import Contradiction, InputError, UnsupportedModule, check_count
from certify.interval import IBP
from certify.lipschitz import local_lipschitz
from certify.lirpa import CROWN
from certify.noise import Gaussian
from certify.rng import Stream
from certify.smoothing import Smoothing
from certify.threat import Norm, Threat
from certify.verified_radius import Bisection
from certify.voting import device_of
from figures.report import FORMAT, read_record, record_of
from figures.report_rows import identity
from paper_repro.models.checkpoint import write_atomically

STORE = "report.sqlite"
_STEPS = 100
_CLIMB, _STARTS = 20, 3
_EIGENVALUES, _PRODUCTS = 8, 100
_SLACK = 1e-6
"""Relative; both sides are computed in float64."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how hard.

    Args:
        norm: Of verification, attacks, masking and Lipschitz constants: Linf or L2. Smoothing certifies in L2.
        eps: The budget at which attacks, masking and Lipschitz constants are reported; > 0.
        sigma: Of the smoothing noise.
        n: Votes per image that bound the smoothed class's probability.
        images: How many of the first images the panels are about.
        seed: Of everything that draws.

    Raises:
        InputError: a value is out of range.
    """

    norm: Norm = "Linf"
    eps: float = 0.1
    sigma: float = 0.25
    n: int = 5000
    images: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in ("Linf", "L2") or not self.threat.eps > 0:
            raise InputError(f"need norm Linf or L2 and eps > 0; got {self.norm!r}, {self.eps!r}")
        self.smoothing  # noqa: B018 - checks sigma and n
        check_count("images", self.images)
        Stream(self.seed)

    @property
    def threat(self) -> Threat:
        """The ball of the attacks at a budget."""
        return Threat(self.norm, self.eps)

    @property
    def smoothing(self) -> Smoothing:
        """The certifier of the smoothed classifier."""
        return Smoothing(Gaussian(self.sigma), n=self.n)

    def reach(self, x: Tensor) -> float:
        """The radius beyond which every ball holds the grey image, so that no two classes can both be verified."""
        return 0.5 if self.norm == "Linf" else 0.5 * x[0].numel() ** 0.5


def measure(
    model: nn.Module,
    data: Data,
    *,
    names: tuple[str, str],
    indices: str,
    plan: Plan,
    out: Path,
    about: Mapping[str, str],
) -> Path:
    """Certify, verify and attack into a store, and measure the panels into the record beside it.

    Args:
        model: (n, ...) in [0, 1] -> (n, classes) logits, in evaluation mode, on its device.
        data: The data set.
        names: What to call the model and the data set.
        indices: Which examples, as a slice.
        plan: What is measured.
        out: The folder; what it holds of this network is not computed again.
        about: What the page says of this measurement: command, commit, weights.

    Returns: The store.

    Raises:
        InputError: an input is wrong, or the folder's store is about another network or data set.
    """
    store = out / STORE
    x, y, ids = select(data, indices)
    subject = {"model_sha256": model_digest(model), "data_sha256": tensor_digest(data.x, data.y, data.id)}
    _check_store(store, identity(subject))
    common: dict[str, Any] = {"names": names, "indices": indices, "add": True}
    run(store, plan.smoothing, model, data, seed=plan.seed, **common)
    unverified = {}
    for verifier in _verifiers(plan, x):
        try:
            verify(store, verifier, model, data, **common)
        except (UnsupportedModule, ImportError) as error:
            unverified[repr(verifier)] = str(error)
    first = ladder(model, x, plan.norm, _STEPS, restarts=1)
    for attacks, eps in ((first, plan.eps), ([FMN(_STEPS)], plan.reach(x))):
        attack_campaign(store, attacks, model, data, threat=Threat(plan.norm, eps), seed=plan.seed, **common)
    device = device_of(model)
    chosen = x[: plan.images].to(device), y[: plan.images].to(device), ids[: plan.images]
    _panels(record_of(store), model, chosen, plan, {**about, **subject, "unverified": unverified})
    return store


def _verifiers(plan: Plan, x: Tensor) -> list[Bisection]:
    threat = Threat(plan.norm, plan.reach(x))
    # CROWN all the way is tighter, and on LeNet takes 20 times as long: not for a first look.
    return [Bisection(IBP(threat), 12), Bisection(CROWN(threat, intermediate="ibp", batch=10), 10)]


def _check_store(store: Path, subject: tuple[str, str]) -> None:
    if not store.exists():
        return
    with Store(store) as file:
        held = {identity(r.settings) for r in (*file.results(), *attack_results(file))}
    if held - {subject}:
        raise InputError(
            f"need a folder of this network and data set; {store} is about others. A model whose callable draws new "
            "weights at each call is another one each time: give --weights"
        )


def _panels(
    path: Path, model: nn.Module, chosen: tuple[Tensor, Tensor, list[int]], plan: Plan, about: Mapping[str, Any]
) -> None:
    """Measure what the record does not hold yet at these settings, and keep each panel as soon as it is done."""
    held = dict(read_record(path))
    settings = {"plan": repr(plan), **{k: about[k] for k in ("model_sha256", "data_sha256")}, "images": chosen[2]}
    makers = {"masking": _masking, "curvature": _curvature, "lipschitz": _lipschitz}
    pending = {name: make for name, make in makers.items() if held.get(name, {}).get("settings") != settings}
    with progress("masking, curvature, Lipschitz", total=len(makers), done=len(makers) - len(pending)) as bar:
        for name, make in pending.items():
            started = time.perf_counter()
            made = _attempt(make, model, chosen, plan)
            seconds = time.perf_counter() - started
            made["cost"] = {**made.pop("cost", {}), "seconds": seconds}
            held[name] = {**made, "n": len(chosen[2]), "seed": plan.seed, "settings": settings}
            _write(path, {**held, "about": about})
            bar.advance(1, name)
    _write(path, {**held, "about": about})


def _attempt(make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A panel, or why this network or these images do not allow it."""
    try:
        return make(*arguments)
    except InputError as error:
        return {"reason": str(error)}


def _write(path: Path, record: Mapping[str, Any]) -> None:
    record = {**record, "format": FORMAT}
    write_atomically(path, (json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _masking(model: nn.Module, chosen: tuple[Tensor, Tensor, list[int]], plan: Plan) -> dict[str, Any]:
    effort = Effort(_STEPS, restarts=2, queries=1000, hops=10, draws=2000)
    rng = Stream(plan.seed).child("masking")
    found = masking_report(model, chosen[0], chosen[1], threat=plan.threat, rng=rng, effort=effort)
    forwards, backwards = (sum(getattr(r, name) for r in found.rungs) for name in ("forwards", "backwards"))
    return {
        "checks": [asdict(check) for check in found.checks],
        "rungs": [asdict(rung) for rung in found.rungs],
        "correct": found.correct,
        "robust": found.robust,
        "threat": repr(found.threat),
        "effort": repr(found.effort),
        "cost": {"forwards": forwards, "backwards": backwards},
    }


def _curvature(model: nn.Module, chosen: tuple[Tensor, Tensor, list[int]], plan: Plan) -> dict[str, Any]:
    rng = Stream(plan.seed)
    operator = Hessian(model, chosen[0], chosen[1])
    few = min(_EIGENVALUES, operator.shape[0])
    spectrum = Lanczos(few, limit=_PRODUCTS)(operator, rng=rng.child("lanczos"))
    trace = HutchPlusPlus(15, 30)(operator, rng=rng.child("trace"))
    return {
        "parameters": operator.shape[0],
        "dtype": str(operator.dtype).removeprefix("torch."),
        "spectrum": {
            **{name: getattr(spectrum, name).tolist() for name in ("eigenvalues", "residuals", "converged")},
            "products": spectrum.products,
            "method": repr(spectrum.method),
        },
        "trace": {
            **{name: getattr(trace, name) for name in ("value", "standard_error", "interval", "products")},
            "alpha": trace.method.alpha,
            "method": repr(trace.method),
        },
        "cost": {"products": operator.products},
    }


def _lipschitz(model: nn.Module, chosen: tuple[Tensor, Tensor, list[int]], plan: Plan) -> dict[str, Any]:
    made: dict[str, Any] = {
        "example": chosen[2],
        "norm": plan.norm,
        "search": f"{_STARTS} random pairs of points, {_CLIMB} steps of ascent each",
        "balls": [],
    }
    double, x = copy.deepcopy(model).double(), chosen[0].double()
    # At the budget itself interval bounds of a network that was not trained for them say little: also well within it.
    for number, eps in enumerate((plan.eps / 10, plan.eps)):
        threat, rng = Threat(plan.norm, eps), Stream(plan.seed).child("lipschitz", number)
        met = sampled_lipschitz(double, x, threat, rng=rng, steps=_CLIMB, restarts=_STARTS).operator.cpu()
        ball: dict[str, Any] = {"eps": eps, "sampled": met.tolist()}
        try:
            bound = local_lipschitz(model, chosen[0], threat)
        except UnsupportedModule as error:
            made["unproved"] = str(error)
        else:
            if bool((met > bound.operator.cpu() * (1 + _SLACK)).any()):
                raise Contradiction(f"a slope was met in {plan.norm} {eps:g} that exceeds its proved Lipschitz bound")
            ball["certified"], made["product"] = bound.operator.tolist(), bound.product
        made["balls"].append(ball)
    return made
