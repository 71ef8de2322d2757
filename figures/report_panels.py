"""The report's sections on what was measured beside a store's rows: masking, curvature and local Lipschitz constants.

A record holds them as plain values; see `report_run`.
"""

from collections import Counter
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from analysis.evaluation import round_down, round_up
from analysis.masking_checks import CONFIDENCE, share
from figures.report_page import Chapter, Missing, Picture, Section, Table
from figures.report_pictures import draw_curvature, draw_lipschitz, picture

_DIGITS = 3
_TITLES = {"masking": "Gradient masking", "curvature": "Curvature", "lipschitz": "Local Lipschitz constants"}
_UNSAID = "A store's rows do not say: this is measured on the network itself."


def panel_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The masking verdict, where there is one."""
    masking = record.get("masking", {})
    return [("f: gradient masking", f"{_verdict(masking)}, n = {masking['n']}")] if "checks" in masking else []


def unmeasured(networks: str, command: str) -> Chapter:
    """One note for the whole page on networks of which no panel was measured.

    Args:
        networks: Which, in words.
        command: What would measure one of them.
    """
    section = Section(", ".join(_TITLES.values()), (f"Of {networks}.",), missing=(Missing(_UNSAID, command),))
    return Chapter("Not measured", (), (section,))


def panel_sections(record: Mapping[str, Any], command: str) -> list[Section]:
    """A section per panel; one that was not measured says so, and names the command that would."""
    makers = {"masking": _masking, "curvature": _curvature, "lipschitz": _lipschitz}
    sections = []
    for name, make in makers.items():
        held = record.get(name)
        if held is None:
            sections.append(Section(_TITLES[name], missing=(Missing(_UNSAID, command),)))
        elif "reason" in held:
            sections.append(Section(_TITLES[name], missing=(Missing(f"Not measured: {held['reason']}."),)))
        else:
            sections.append(make(held))
    return sections


def _verdict(held: Mapping[str, Any]) -> str:
    counts = Counter(check["verdict"] for check in held["checks"])
    return f"{counts['flagged']} of {len(held['checks'])} checks flagged, {counts['inconclusive']} inconclusive"


def _masking(held: Mapping[str, Any]) -> Section:
    n, correct, robust = held["n"], held["correct"], held["robust"]
    text = [
        f"{_verdict(held)}. A flagged check says that an evaluation by gradients cannot be trusted as it is; "
        "no check proves robustness.",
        f"The first {n} images, {held['threat']}, {held['effort']}, seed {held['seed']}: clean accuracy "
        f"{share(correct, n)}, worst case over all attacks at most {share(robust, n)}; "
        f"brackets hold exact {100 * (1 - CONFIDENCE):g} % intervals.",
    ]
    text += [f"Check {c['number']}, {c['name']}: {c['advice']}." for c in held["checks"] if c["advice"]]
    body = tuple(
        (str(c["number"]), c["question"], c["verdict"], c["evidence"], ", ".join(c["sources"])) for c in held["checks"]
    )
    checks = Table("Each sign of masking once.", ("#", "question", "verdict", "evidence", "asked by"), body)
    rungs = tuple(
        (r["attack"], f"{r['broken']} of {r['attacked']}", str(r["forwards"]), str(r["backwards"]))
        for r in held["rungs"]
    )
    header = ("attack", "broke", "forward passes", "backward passes")
    tables = (checks, Table("Every attack that was run, and what it cost.", header, rungs, long=True))
    return Section(_TITLES["masking"], tuple(text), (), tables)


def _curvature(held: Mapping[str, Any]) -> Section:
    trace, spectrum = held["trace"], held["spectrum"]
    ends = zip(trace["interval"], (ROUND_FLOOR, ROUND_CEILING), strict=True)
    low, high = (f"{Context(prec=6, rounding=way).create_decimal(Decimal(v)):g}" for v, way in ends)
    text = (
        f"The Hessian of the mean cross-entropy over n = {held['n']} images in all {held['parameters']} parameters, "
        f"in {held['dtype']}, seed {held['seed']}. Where the network has kinks, it is that of the piece at hand.",
        f"Trace {trace['value']:.6g}, standard error {trace['standard_error']:.2g}, and [{low}, {high}] with "
        f"probability {100 * (1 - trace['alpha']):g} %, by {trace['method']} in {trace['products']} products.",
        f"Eigenvalues by {spectrum['method']} in {spectrum['products']} products: some eigenvalue lies within each "
        "residual; that none further out was missed is not proved.",
    )
    body = tuple(
        (str(i), f"{value:.6g}", f"{residual:.1e}", "yes" if done else "no")
        for i, (value, residual, done) in enumerate(
            zip(spectrum["eigenvalues"], spectrum["residuals"], spectrum["converged"], strict=True), start=1
        )
    )
    table = Table("Largest eigenvalues by magnitude.", ("rank", "eigenvalue", "residual", "converged"), body)
    drawn = Picture(
        picture(lambda figure: draw_curvature(figure, spectrum, trace)),
        "The leading eigenvalues of the loss's Hessian, and its trace with an interval; the numbers are in the table.",
        f"Estimates from n = {held['n']} images, seed {held['seed']}.",
    )
    return Section(_TITLES["curvature"], text, (drawn,), (table,))


def _lipschitz(held: Mapping[str, Any]) -> Section:
    balls, n = held["balls"], held["n"]
    within = " and ".join(f"{ball['eps']:g}" for ball in balls)
    text = [
        f"How fast the logits can change around each of n = {n} images, both norms {held['norm']}, within {within}. "
        f"Sampled: the largest slope met by {held['search']}, seed {held['seed']}. Proved: a bound on the interval "
        "Jacobian, deterministic, in float64 up to rounding."
    ]
    missing = ()
    if "product" in held:
        everywhere = round_up(held["product"], _DIGITS)
        text.append(f"Everywhere, not only there, it is at most the product of the layers' norms, {everywhere}.")
    else:
        missing = (Missing(f"No proved bound: {held['unproved']}."),)
    columns = [[str(e) for e in held["example"]]]
    header = ["example"]
    for ball in balls:
        header += [f"within {ball['eps']:g}: at least", "at most"]
        columns.append([round_down(v, _DIGITS) for v in ball["sampled"]])
        columns.append([round_up(v, _DIGITS) for v in ball["certified"]] if "certified" in ball else ["unknown"] * n)
    body = tuple(zip(*columns, strict=True))
    table = Table("Local Lipschitz constants, rounded outward.", tuple(header), body, long=True)
    drawn = Picture(
        picture(lambda figure: draw_lipschitz(figure, balls, held.get("product"))),
        "For each image the largest slope met and the proved bound on it; the table below lists them.",
        f"The constant of each image lies on the grey line; n = {n}, seed {held['seed']}.",
    )
    return Section(_TITLES["lipschitz"], tuple(text), (drawn,), (table,), missing)
