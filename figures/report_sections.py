"""The report's chapter on one network: curves and brackets from a store's rows, and what is missing there."""

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.campaign import rungs_of
from analysis.evaluation import exact_interval, round_down, round_up
from certify.accuracy import FloatArray
from certify.binomial import upper_confidence_bound
from certify.campaign.tables import render, row_of
from figures.compare import RADII, short, unbroken
from figures.report_origin import cost, provenance
from figures.report_page import Chapter, Missing, Picture, Section, Table
from figures.report_panels import panel_facts, panel_sections
from figures.report_pictures import draw_brackets, draw_curves, picture
from figures.report_rows import F, Found, Known, Network, Proved, Source, known, seed_of

_POINTS = 200
_COLUMNS = 4
_DIGITS = 5
_REGIONS = {
    "ball": "the whole ball",
    "box": "the ball's part in the input box",
    "lattice": "the lattice's points in it",
}
_VERBS = {
    "run": ("certify", "run"),
    "verify": ("certify", "verify"),
    "attack": ("analysis", "attack"),
    "report": ("figures", "report"),
}


def chapter(network: Network, source: Source) -> Chapter:
    """All that is known of one network.

    Raises:
        Contradiction: a deterministic certificate reaches a counterexample.
    """
    shown = [
        (subject, norm, known(network, subject, norm))
        for subject in network.subjects()
        for norm in network.norms(subject)
    ]
    sections = [_bounds(network, *each, source) for each in shown]
    absent = _absent(network, source)
    if absent:
        sections.append(Section("Not in this store", missing=absent))
    if source.record:
        sections += panel_sections(source.record, command_for(network, "report", source))
    sections += [cost(network, source), provenance(network, source)]
    settings = network.settings
    facts = dict.fromkeys(fact for each in shown for fact in _facts(network, *each, source.rho))
    title = f"{settings['model']} on {settings['data']}"
    return Chapter(title, (*facts, *panel_facts(source.record)), tuple(sections))


def share(count: int, n: int, rho: float) -> str:
    """A count, its share and the exact interval for the population's."""
    low, high = exact_interval(count, n, rho)
    return f"{count}/{n} = {count / n:.3f} [{round_down(low, 3)}, {round_up(high, 3)}]"


def _percent(rho: float) -> str:
    return f"{100 * (1 - rho):g} %"


def _about(subject: str) -> str:
    return "The network f" if subject == F else f"The smoothed classifier {subject}"


def _facts(network: Network, subject: str, norm: str, bounds: Known, rho: float) -> list[tuple[str, str]]:
    n, facts = len(bounds.example), []
    for run in network.found_of(subject, norm):
        rows = run.results.rows
        m, drawn = len(rows), seed_of(run.results.settings)
        facts.append((f"{subject}: clean accuracy", share(int(rows.correct.sum()), m, rho)))
        lower = bounds.lower[np.isin(bounds.example, rows.example)]
        for radius in _telling(run, lower):
            held, left = int((lower >= radius).sum()), unbroken(rows.distance, radius, run.eps)
            both = f"at least {share(held, m, rho)} proved, at most {share(left, m, rho)} found"
            facts.append((f"{subject}: robust accuracy at {norm} {radius:g}", f"{both} ({drawn})"))
    for run in network.proved_of(subject, norm):
        row, radii = row_of(run.results, [0.0], rho=rho), np.maximum(run.results.scores(), 0.0)
        middle, best = (round_down(float(value), _DIGITS) for value in (np.median(radii), radii.max()))
        text = f"median {middle}, largest {best}, average (ACR) {row.acr:.4f}, se {row.acr_se:.4f}"
        about = f"n = {len(radii)}, {seed_of(run.results.settings)}"
        facts.append((f"{subject}: radii proved in {norm} by {run.name}", f"{text}; {about}"))
    if bounds.attacked.all() and (bounds.lower > 0).any():
        low, high = float(np.median(bounds.lower)), float(np.median(bounds.upper))
        least = f"at least {round_down(low, _DIGITS)}"
        most = f"at most {round_up(high, _DIGITS)}" if math.isfinite(high) else "no error found near half of them"
        facts.append((f"{subject}: median r* of these images in {norm}", f"{least}, {most}; n = {n}"))
    return facts


def _telling(run: Found, lower: FloatArray) -> list[float]:
    """The radii of a run's headlines: its budget, and where nothing is proved there, a round radius with more to say.

    A search for the nearest error has the whole box as its budget, where nothing is proved and every image is broken.
    That is left out. The round radius is the largest at which something is proved, else at which something is left.
    """
    distance = run.results.rows.distance
    if (lower >= run.eps).any():
        return [run.eps]
    round_radii = [r for r in RADII.get(run.norm, ()) if r < run.eps]
    proved = [r for r in round_radii if (lower >= r).any()]
    left = [r for r in round_radii if unbroken(distance, r, run.eps)]
    whole = [run.eps] if unbroken(distance, run.eps, run.eps) or not (proved or left) else []
    return [*(proved or left)[-1:], *whole]


def _bounds(network: Network, subject: str, norm: str, bounds: Known, source: Source) -> Section:
    proved, found = network.proved_of(subject, norm), network.found_of(subject, norm)
    title = f"{_about(subject)} in {norm}"
    pictures = (_curves(proved, found, bounds, norm, title, source.rho), _brackets(subject, bounds, norm))
    tables = [_accuracy(proved, found, bounds, source.rho), *([_attacks(found, source.rho)] if found else [])]
    missing = []
    if not found and subject == F:
        text = f"No attack on f in {norm} is in the store, so there is no upper bound."
        missing.append(Missing(text, command_for(network, "attack", source, norm)))
    elif not found:
        text = (
            f"No upper bound on r* of {subject}: attacks on f say nothing about it, and the errors of a smoothed "
            "classifier are themselves only estimated. certify.SmoothedClassifier is the module to attack."
        )
        missing.append(Missing(text))
    elif not proved:
        text = f"No certificate for f in {norm} is in the store, so every lower bound is 0."
        missing.append(Missing(text, command_for(network, "verify", source, norm)))
    return Section(title, (_sentence(proved, source.rho),), pictures, (*tables, _rows(bounds, norm)), tuple(missing))


def _sentence(proved: Sequence[Proved], rho: float) -> str:
    """What the certificates promise, and what the intervals assume."""
    headers = [p.results.certificate.header() for p in proved]
    failing = sorted({h["alpha"] for h in headers if h["alpha"] is not None})
    text = "Certificates are deterministic: they hold without exception. " if headers else ""
    if failing:
        alphas = ", ".join(f"{alpha:g}" for alpha in failing)
        text = f"Each certificate is false with probability at most alpha = {alphas} over its own votes. "
    if headers:
        where = ", ".join(dict.fromkeys(_REGIONS[h["region"]] for h in headers))
        text += f"They are about {where}; arithmetic: {'; '.join(dict.fromkeys(h['arithmetic'] for h in headers))}. "
    return f"{text}Intervals over images are exact, {_percent(rho)}, and assume that the images are independent draws."


def _top(bounds: Known) -> float:
    finite = bounds.upper[np.isfinite(bounds.upper)]
    farthest = float(np.max(finite, initial=0.0)) or bounds.reach
    return max(farthest, float(np.max(bounds.lower, initial=0.0)), 1e-9)


def _curves(
    proved: Sequence[Proved], found: Sequence[Found], bounds: Known, norm: str, title: str, rho: float
) -> Picture:
    # Fine where something is proved, which may be near zero.
    ends = (_top(bounds) * 1.02, float(np.max(bounds.lower, initial=0.0)) * 1.05)
    grid = np.unique(np.concatenate([np.linspace(0, end, _POINTS) for end in ends]))
    rows = [replace(row_of(p.results, grid.tolist(), rho=rho), name=p.name) for p in proved]
    attacked = None
    if found:
        radii = np.unique([*grid[grid <= bounds.reach], min(bounds.reach, float(grid[-1]))])
        counts, n = _unbroken(bounds, radii), int(bounds.attacked.sum())
        upper = np.array([upper_confidence_bound(int(k), n, rho) for k in counts])
        attacked = radii, counts / n, upper, f"not broken by any attack: n = {n}"
    seeds = "; ".join(f"{run.name}: {seed_of(run.results.settings)}" for run in [*proved, *found])
    caption = ""
    if proved:
        caption = (
            "Certified correct within r: observed (lines), shaded down to the population's lower bound at all r "
            f"together, {_percent(rho)}. "
        )
    if found:
        caption += (
            f"Black: no error found within r; hatched up to the population's upper bound at each r, {_percent(rho)}. "
            f"{_extent(bounds)}"
        )
    return Picture(
        picture(lambda figure: draw_curves(figure, rows, attacked, norm)),
        f"{title}: share of images against radius; the same numbers are in the table below.",
        f"{caption}{seeds}.",
    )


def _extent(bounds: Known) -> str:
    """How far each image was attacked, where that differs."""
    if len(bounds.extents) < 2:
        return ""
    each = ", ".join(f"{count} up to {budget:g}" for budget, count in bounds.extents)
    return f"Not all images were attacked as far: {each}. Beyond its own budget an image counts as not broken. "


def _unbroken(bounds: Known, radii: FloatArray) -> FloatArray:
    met = bounds.upper[bounds.attacked]
    return np.array([unbroken(met, float(r), bounds.reach) for r in radii], np.float64)


def _radii(proved: Sequence[Proved], found: Sequence[Found], bounds: Known) -> list[float]:
    """Round numbers, and the budgets at which something was verified or attacked."""
    top = _top(bounds)
    ends = [end for end in (top, float(np.max(bounds.lower, initial=0.0))) if end > 0]
    ticks = [float(f"{r:.6g}") for end in ends for r in MaxNLocator(_COLUMNS).tick_values(0, end) if r <= end]
    single = [np.unique(p.results.scores()[p.results.scores() > 0]) for p in proved]
    budgets = [run.eps for run in found] + [float(radii[0]) for radii in single if len(radii) == 1]
    return sorted({0.0, *(r for r in (*ticks, *budgets) if 0 <= r <= max(top, bounds.reach))})


def _accuracy(proved: Sequence[Proved], found: Sequence[Found], bounds: Known, rho: float) -> Table:
    radii = _radii(proved, found, bounds)
    header = ["run", "n", "votes", "alpha", "quantity", "ACR", "ACR se", *(f"r={r:g}" for r in radii)]
    body: list[list[str]] = []
    if proved:
        rows = [replace(row_of(p.results, radii, rho=rho), name=p.name) for p in proved]
        body += [[row[0], *row[2:]] for row in list(csv.reader(io.StringIO(render(rows, "csv"))))[1:]]
    if found:
        n = int(bounds.attacked.sum())
        lead = [", ".join(run.name for run in found), str(n), "", ""]
        counts = _unbroken(bounds, np.array(radii))
        tested = [r <= bounds.reach for r in radii]
        shares = [f"{k / n:.3f}" if ok else "" for k, ok in zip(counts, tested, strict=True)]
        upper = [
            round_up(upper_confidence_bound(int(k), n, rho), 3) if ok else ""
            for k, ok in zip(counts, tested, strict=True)
        ]
        body += [[*lead, "not broken", "", "", *shares], [*lead, f"each <=, {_percent(rho)}", "", "", *upper]]
        if len(bounds.extents) > 1:
            budget = bounds.budget[bounds.attacked]
            met = [f"{int((budget >= r).sum())}/{n}" if ok else "" for r, ok in zip(radii, tested, strict=True)]
            body.append([*lead, "attacked up to r", "", "", *met])
    said = []
    if proved:
        said.append("Share of images certified correct within r; >= bounds the population's, at each r or at all.")
    if found:
        said.append(f"{'Last: the share' if proved else 'Share of images'} not broken within r by any attack;")
        said.append(f"<= bounds the population's; empty: not tried. {_extent(bounds)}".rstrip())
    return Table(" ".join(said), tuple(header), tuple(map(tuple, body)))


def _attacks(found: Sequence[Found], rho: float) -> Table:
    body = []
    for run in found:
        rows, settings = run.results.rows, run.results.settings
        robust = share(int(rows.robust.sum()), len(rows), rho)
        for rung in rungs_of(rows, settings["attacks"]):
            met = f"{rung.broken} of {rung.attacked}"
            body.append((run.name, f"{run.eps:g}", seed_of(settings), robust, rung.attack, met))
    header = ("run", "eps", "seed", f"robust accuracy at most, {_percent(rho)}", "attack", "broke")
    return Table("Each attack meets what the ones before it in its run left.", header, tuple(body))


def _brackets(subject: str, bounds: Known, norm: str) -> Picture:
    n = len(bounds.example)
    both = bool(bounds.attacked.any())
    shown = "Lower and upper bounds on r*" if both else "Lower bounds on r*"
    read = "it lies on the grey line" if both else "it is at least this far; nothing bounds it from above"
    silent = int(((bounds.lower == 0) & ~bounds.attacked).sum())
    if silent:
        read += f". Of {silent} nothing is proved: the certificates abstain there, or are about another class"
    return Picture(
        picture(lambda figure: draw_brackets(figure, bounds, norm)),
        f"{shown} of {subject} in {norm} for {n} examples; the table below lists them.",
        f"What is known of r* of {subject} for each of n = {n} examples: {read}.",
    )


def _rows(bounds: Known, norm: str) -> Table:
    each = zip(
        bounds.example.tolist(),
        bounds.label.tolist(),
        bounds.lower.tolist(),
        bounds.upper.tolist(),
        [f"{b:g}" if met else "not attacked" for b, met in zip(bounds.budget, bounds.attacked, strict=True)],
        bounds.proved_by,
        bounds.found_by,
        strict=True,
    )
    body = tuple(
        (str(e), str(label), round_down(low, _DIGITS), _upper(high), to, by or "nothing", at or "nothing")
        for e, label, low, high, to, by, at in each
    )
    header = ("example", "label", "lower", "upper", "attacked up to", "proved by", "found by")
    return Table(f"lower <= r* <= upper in {norm}, rounded outward; all n = {len(body)} examples.", header, body, True)


def _upper(value: float) -> str:
    return round_up(value, _DIGITS) if math.isfinite(value) else "unknown"


def _absent(network: Network, source: Source) -> tuple[Missing, ...]:
    subjects = network.subjects()
    unverified = source.record.get("about", {}).get("unverified", {})
    missing = [Missing(f"{short(method)} was not run: {reason}.") for method, reason in unverified.items()]
    if subjects == [F]:
        text = "No smoothed classifier was certified, so there is no certified curve with its band."
        missing.append(Missing(text, command_for(network, "run", source)))
    if F not in subjects:
        text = "Nothing is verified about the network f itself."
        missing.append(Missing(text, command_for(network, "verify", source)))
        text = "No attack on f is in the store: there is neither an attack curve nor an upper bound."
        missing.append(Missing(text, command_for(network, "attack", source)))
    return tuple(missing)


def command_for(network: Network, verb: str, source: Source, norm: str = "Linf") -> str:
    """The command that adds something to the store, or with "report" to the page; capitals stand for the reader's."""
    # Certificates do not record which slice they were made from; attacks do.
    indices = next((a.results.settings["indices"] for a in network.found), "START:STOP:STEP")
    data, _, split = str(network.settings["data"]).partition(" ")
    # A recipe names its networks freely: only package.module:callable can be called.
    model, _, more = str(network.settings["model"]).partition(" ")
    words = ["python", "-m", *_VERBS[verb]]
    words += ["--model", "PACKAGE.MODULE:CALLABLE" if more else model, "--weights", "WEIGHTS", "--data", data]
    words += ["--split", split or "test", "--indices", indices]
    words += {
        "run": ["--scale", "0.25"],
        "verify": ["--norm", norm, "--eps", "0.5" if norm == "Linf" else "3", "--largest", "--method", "crown"],
        "attack": ["--norm", norm, "--eps", "0.1" if norm == "Linf" else "0.5"],
        "report": [],
    }[verb]
    words += ["--out", "DIR"] if verb == "report" else ["--store", source.store, "--add"]
    return shlex.join(words)
