"""The same test images under every certifier and attack of a store, each in its own norm and in the other one.

Linf and L2 balls contain each other only up to a factor sqrt(d), so a certificate restated in the other norm pays for
it. Native and converted numbers stand side by side, the latter marked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.campaign import threat_of
from analysis.evaluation import beyond
from certify.accuracy import FloatArray, scores
from certify.binomial import lower_confidence_bound, upper_confidence_bound
from certify.bracket import bracket
from certify.campaign.attack_rows import AttackResults, attack_results
from certify.campaign.logs import floor_decimal
from certify.campaign.results import Results
from certify.campaign.store import Store
from certify.campaign.tables import Format, as_text
from certify.certificate import Certificate, Deterministic
from certify.errors import InputError
from certify.norms import convert
from certify.threat import Norm
from figures.page import write

NORMS: tuple[Norm, Norm] = ("Linf", "L2")
RADII: dict[str, tuple[float, ...]] = {"Linf": (0.01, 0.03, 0.1, 0.3), "L2": (0.1, 0.5, 1.0, 1.5)}
_MARK = "*"
_POINTS = 300
_DIGITS = 8
"""Of a digest, enough to tell two apart."""
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One run in the comparison.

    Attributes:
        network: What tells these weights from all others of the comparison: names of stores and of the model.
        subject: The classifier it is about.
        method: Short.
        guarantee: "deterministic", "1 - alpha per input", or "found" for an attack.
        native: The norm it was made in.
        passes: Forward passes per image, as text.
        seconds: Per image.
        scores: By norm: (m,) certified radius where correct and -inf elsewhere; for an attack the distance found.
        eps: For an attack, the budget beyond which its distances say nothing; None for a certificate.
        examples: Ids.
    """

    network: str
    subject: str
    method: str
    guarantee: str
    native: str
    passes: str
    seconds: float
    scores: dict[str, FloatArray]
    eps: float | None
    examples: tuple[int, ...]

    @property
    def label(self) -> str:
        """What a legend calls it."""
        return f"{self.network}, {self.subject}: {self.method}"


def compare(stores: Sequence[Path], out: Path, *, dimension: int, rho: float = 0.05) -> list[Path]:
    """Draw and tabulate every run of the stores on the examples that all of them share.

    Args:
        stores: Stores of certificates and of attacks.
        out: The folder.
        dimension: Numbers in one input, d of the conversion between norms.
        rho: Failure probability of each interval over images.

    Returns: The files.

    Raises:
        InputError: no run, several data sets, no example that all runs share, or an attack was free to leave the box
            that a certificate does not look beyond.
        Contradiction: a deterministic certificate reaches a counterexample of the same network and norm.
    """
    certificates: list[Results] = []
    attacks: list[AttackResults] = []
    runs: list[tuple[str, Results | AttackResults]] = []
    for path in stores:
        with Store(path) as store:
            made, found = store.results(), attack_results(store)
        runs += [(path.stem, run) for run in (*made, *found)]
        certificates += made
        attacks += found
    if not certificates:
        raise InputError(f"need a run of certificates; {', '.join(map(str, stores))} hold none")
    check_data([*certificates, *attacks])
    check_brackets(certificates, attacks, dimension)
    names = _names([(store, run.settings) for store, run in runs])
    lines = [_of(run, names[run.settings["model_sha256"]], dimension) for _, run in runs]
    shared = sorted(set.intersection(*(set(line.examples) for line in lines)))
    if not shared:
        raise InputError("need examples that all runs share; there is none")
    lines = [_on(line, shared) for line in lines]
    header, body = _table(lines, rho)

    def table(form: Format) -> str:
        text = as_text(header, body, form)
        return text + "\n" + "\n".join(_text(lines, dimension, rho)) + "\n" if form == "md" else text

    return write("compare", out, lambda figure: _draw(figure, lines, dimension), table)


def identity(settings: Mapping[str, Any]) -> tuple[str, str]:
    """What two runs must share to be about the same network and data."""
    return settings["model_sha256"], settings["data_sha256"]


def check_data(runs: Sequence[Results | AttackResults]) -> None:
    """Refuse to join runs by their examples' ids where these name images of several data sets.

    Raises:
        InputError: there are several.
    """
    names = {run.settings["data_sha256"]: run.settings["data"] for run in runs}
    if len(names) > 1:
        held = ", ".join(f"{digest[:_DIGITS]} ({name})" for digest, name in names.items())
        raise InputError(f"need one data_sha256 in all runs, for an id names another image in another; got {held}")


def check_brackets(certificates: Sequence[Results], attacks: Sequence[AttackResults], dimension: int) -> None:
    """Join every certificate about f with every attack on the same weights and data, in the attack's norm.

    Raises:
        InputError: an attack was free to leave the box that a certificate does not look beyond.
        Contradiction: a deterministic certificate reaches a counterexample.
    """
    for made in certificates:
        for found in attacks:
            if identity(made.settings) != identity(found.settings) or made.certificate.subject != "f":
                continue
            threat = threat_of(found.settings)
            if made.certificate.region != "ball" and threat.box is None:
                method = short(str(made.certificate.header()["method"]))
                raise InputError(
                    f"need attacks in the box that {method} is about; those at {threat.norm} {threat.eps:g} had none: "
                    "keep the two apart"
                )
            common, mine, theirs = np.intersect1d(made.example, found.rows.example, return_indices=True)
            if len(common):
                whole = convert(made.certificate, threat.norm, dimension)
                records = whole.records()
                part = Certificate.from_record(whole.header(), [records[i] for i in mine])
                bracket(part, torch.from_numpy(made.label[mine]), torch.from_numpy(found.rows.distance[theirs]))


def _names(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """By model_sha256 a name of its own: stores and callables, and the digest where others share those.

    Args:
        runs: The store's name and the settings of each.
    """
    stores: dict[str, dict[str, None]] = {}
    models: dict[str, dict[str, None]] = {}
    for store, settings in runs:
        digest = settings["model_sha256"]
        stores.setdefault(digest, {})[store] = None
        models.setdefault(digest, {})[str(settings["model"]).rpartition(":")[2]] = None
    named = {digest: (", ".join(stores[digest]), ", ".join(models[digest])) for digest in stores}
    held = list(named.values())
    return {
        digest: f"{store} ({model}{f', {digest[:_DIGITS]}' if held.count((store, model)) > 1 else ''})"
        for digest, (store, model) in named.items()
    }


def short(method: str) -> str:
    """A method's repr without what the comparison shows elsewhere."""
    found = re.match(r"Bisection\(method=(\w+)\((.*)\), steps=\d+\)$", method) or re.match(r"(\w+)\((.*)\)$", method)
    if found is None:
        return method
    name, fields = found.groups()
    slopes = re.search(r"slopes='(\w+)'", fields)
    kind = {"fast_lin": " (Fast-Lin)", "optimized": " (optimised slopes)"}.get(slopes[1] if slopes else "", "")
    if name == "CROWN" and "intermediate='ibp'" in fields:
        name = "CROWN-IBP"
    eps = re.search(r"\beps=([0-9.e-]+)", fields)
    fixed = "" if method.startswith("Bisection") or eps is None else f" at {float(eps[1]):g}"
    return f"{name}{kind}{fixed}"


def _of(results: Results | AttackResults, network: str, dimension: int) -> Line:
    if isinstance(results, AttackResults):
        return _of_attacks(results, network)
    return _of_certificates(results, network, dimension)


def _of_certificates(results: Results, network: str, dimension: int) -> Line:
    c = results.certificate
    deterministic = isinstance(c.guarantee, Deterministic)
    label = torch.from_numpy(results.label)
    return Line(
        network=network,
        subject=c.subject,
        method=short(str(c.header()["method"])),
        guarantee="deterministic" if deterministic else f"1 - {c.header()['alpha']:g} per input",
        native=c.norm,
        passes=f"{c.samples.double().mean():.0f}" if int(c.samples.sum()) else "1 and bounds",
        seconds=float(results.seconds.mean()),
        scores={norm: scores(convert(c, norm, dimension), label) for norm in NORMS},
        eps=None,
        examples=tuple(results.example.tolist()),
    )


def _of_attacks(results: AttackResults, network: str) -> Line:
    threat = threat_of(results.settings)
    attacks = ", ".join(results.settings["attacks"])
    return Line(
        network=network,
        subject="f",
        method=f"attacked at {threat.eps:g} by {attacks}, seed {results.settings['seed']}",
        guarantee="found",
        native=threat.norm,
        passes=f"{results.rows.forwards.sum(1).mean():.0f}",
        seconds=float(results.rows.seconds.mean()),
        scores={threat.norm: results.rows.distance},
        eps=threat.eps,
        examples=tuple(results.rows.example.tolist()),
    )


def _on(line: Line, shared: list[int]) -> Line:
    place = {example: i for i, example in enumerate(line.examples)}
    rows = [place[example] for example in shared]
    chosen = {norm: values[rows] for norm, values in line.scores.items()}
    fields = {name: getattr(line, name) for name in Line.__dataclass_fields__}
    return Line(**{**fields, "scores": chosen, "examples": tuple(shared)})


def accuracy(line: Line, norm: str, radius: float) -> int | None:
    """Examples certified correct at a radius, or for an attack not broken within it; None where it cannot say."""
    if norm not in line.scores:
        return None
    if line.eps is None:
        return int((line.scores[norm] >= radius).sum())
    return None if radius > line.eps else unbroken(line.scores[norm], radius, line.eps)


def unbroken(distance: FloatArray, radius: float, eps: float) -> int:
    """How many examples no attack of budget eps broke within a radius of at most that."""
    return int((np.isinf(distance) if radius >= eps else beyond(distance, radius)).sum())


def _table(lines: Sequence[Line], rho: float) -> tuple[list[str], list[list[str]]]:
    columns = [(norm, radius) for norm in NORMS for radius in RADII[norm]]
    header = ["network", "subject", "method", "guarantee", "norm", "m", "passes", "s/image"]
    header += [f"{norm} {radius:g}" for norm, radius in columns]
    body = []
    for line in lines:
        cells = []
        for norm, radius in columns:
            hits = accuracy(line, norm, radius)
            cells.append("" if hits is None else _cell(hits, len(line.examples), rho, norm != line.native, line.eps))
        lead = [line.network, line.subject, line.method, line.guarantee, line.native, str(len(line.examples))]
        body.append([*lead, line.passes, f"{line.seconds:.2g}", *cells])
    return header, body


def _cell(hits: int, m: int, rho: float, converted: bool, eps: float | None) -> str:
    low, high = lower_confidence_bound(hits, m, rho / 2), upper_confidence_bound(hits, m, rho / 2)
    sign = "" if eps is None else "<= "
    interval = f"[{floor_decimal(low, 3)}, {-Decimal(floor_decimal(-high, 3))}]"
    return f"{sign}{hits / m:.3f}{_MARK if converted else ''} {interval}"


def _text(lines: Sequence[Line], dimension: int, rho: float) -> list[str]:
    """What the table shows, in sentences."""
    factor = dimension**0.5
    m = len(lines[0].examples)
    said = [
        f"{m} examples, the same in every row; intervals are exact, {100 * (1 - rho):g} % each, over images.",
        f"{_MARK} converted from the other norm: an L2 ball of radius r holds the Linf ball of r / sqrt({dimension}) = "
        f"r / {factor:.4g}, and a Linf ball of radius r the L2 ball of radius r.",
        "An attack's row bounds from above what any certifier of the same network could show.",
        "A smoothed classifier g and its base f are different classifiers: their rows do not bound each other.",
        "",
    ]
    certified = [line for line in lines if line.eps is None]
    for norm in NORMS:
        for radius in RADII[norm]:
            best = max(certified, key=lambda line: accuracy(line, norm, radius) or 0)
            hits = accuracy(best, norm, radius) or 0
            if hits:
                how = "natively" if best.native == norm else f"by conversion from {best.native}"
                said.append(f"At {norm} {radius:g}: {hits / m:.3f} by {best.label}, {how}, {best.guarantee}.")
            else:
                said.append(f"At {norm} {radius:g}: nothing is certified.")
    reach = {
        norm: max(float(np.max(line.scores[norm], initial=0.0)) for line in certified if line.native == norm)
        for norm in NORMS
        if any(line.native == norm for line in certified)
    }
    if len(reach) == 2:
        said += [
            "",
            f"Why the norms decide it: the largest native radii here are {reach['Linf']:.4g} in Linf and "
            f"{reach['L2']:.4g} in L2. Restated, they are worth {reach['L2'] / factor:.4g} in Linf and "
            f"{reach['Linf']:.4g} in L2. A conversion towards Linf costs the factor {factor:.4g}, so an L2 radius is "
            "worth little there, and a Linf radius is worth no more in L2 than it is in Linf: each method leads in the "
            "norm that it was made for, unless its bound is looser than that.",
        ]
    return said


def _draw(figure: Figure, lines: Sequence[Line], dimension: int) -> None:
    """A row of panels per network, a colour per method."""
    networks = list(dict.fromkeys(line.network for line in lines))
    methods = list(dict.fromkeys(line.method.partition(" at ")[0] for line in lines if line.eps is None))
    figure.set_size_inches(9, 1.2 + 1.9 * len(networks))
    panels = figure.subplots(len(networks), 2, sharey=True, sharex="col", squeeze=False)
    for row, network in zip(panels, networks, strict=True):
        for axes, norm in zip(row, NORMS, strict=True):
            for line in (line for line in lines if line.network == network):
                _draw_line(axes, line, norm, methods)
            axes.set(xlim=(0, max(RADII[norm]) * 1.1), ylim=(0, 1))
            axes.set_title(f"{network}, {norm}", fontsize=9)
        row[0].set_ylabel("share of images", fontsize=9)
    for axes, norm in zip(panels[-1], NORMS, strict=True):
        axes.set_xlabel(f"{norm} radius (input units)")
    handles = [
        Line2D([], [], color=f"C{i}", ls=_STYLES[i % len(_STYLES)], lw=1.8, label=name)
        for i, name in enumerate(methods)
    ]
    handles.append(Line2D([], [], color="black", ls="", marker="v", label="not broken by attack: an upper bound on f"))
    certified = sum(line.eps is None for line in lines)
    figure.suptitle(
        f"Certified correct, {len(lines[0].examples)} images, {certified} runs; thick: native norm, thin: converted "
        f"(d = {dimension})",
        fontsize=10,
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)


def _draw_line(axes: Axes, line: Line, norm: Norm, methods: Sequence[str]) -> None:
    m = len(line.examples)
    if line.eps is not None:
        # A search for the nearest error has the whole box as its budget: its marks stand at the table's radii.
        for r in (r for r in RADII[norm] if norm in line.scores and r <= line.eps):
            axes.plot([r], [(accuracy(line, norm, r) or 0) / m], "v", color="black", ms=5, clip_on=False)
        return
    grid = np.linspace(0, max(RADII[norm]) * 1.1, _POINTS)
    shares = [(accuracy(line, norm, r) or 0) / m for r in grid]
    number = methods.index(line.method.partition(" at ")[0])
    width = 2.4 if line.native == norm else 1.2
    axes.plot(grid, shares, _STYLES[number % len(_STYLES)], color=f"C{number}", lw=width)
