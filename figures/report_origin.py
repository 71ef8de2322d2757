"""The report's sections on what the numbers cost and where they come from."""

import json

from certify.accuracy import FloatArray
from figures.report_page import Details, Section, Table
from figures.report_rows import F, Network, Proved, Source, seed_of


def cost(network: Network, source: Source) -> Section:
    """What every run and panel cost, as recorded with its rows."""
    body = []
    for p in network.proved:
        r = p.results
        samples = int(r.certificate.samples.sum())
        passes = f"{samples}" if samples else "bounds, not counted"
        body.append((p.name, r.certificate.subject, str(len(r.example)), passes, "", *_time(r.seconds)))
    for a in network.found:
        rows = a.results.rows
        passes = str(int(rows.forwards.sum())), str(int(rows.backwards.sum()))
        body.append((a.name, F, str(len(rows)), *passes, *_time(rows.seconds)))
    for name in ("masking", "curvature", "lipschitz"):
        held = source.record.get(name, {})
        if "reason" not in held and held:
            spent = held["cost"]
            seconds = f"{spent['seconds'] / held['n']:.3g}", f"{spent['seconds']:.3g}"
            passes = tuple(str(spent.get(k, "not counted")) for k in ("forwards", "backwards"))
            passes = (f"{spent['products']} products", "") if "products" in spent else passes
            body.append((name, F, str(held["n"]), *passes, *seconds))
    header = ("run", "subject", "n", "forward passes", "backward passes", "s/image", "s in all")
    caption = "One pass classifies one input; seconds are wall clock, as recorded when the rows were made."
    return Section("Cost", tables=(Table(caption, header, tuple(body)),))


def _time(seconds: FloatArray) -> tuple[str, str]:
    return f"{seconds.mean():.3g}", f"{seconds.sum():.3g}"


def provenance(network: Network, source: Source) -> Section:
    """What determined the numbers: settings, digests, versions."""
    details = []
    for run in [*network.proved, *network.found]:
        settings = run.results.settings
        header = run.results.certificate.header() if isinstance(run, Proved) else {}
        items = {k: v for k, v in {**header, **settings}.items() if v is not None}
        lines = [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in items.items()]
        for started, environment in source.sessions.get(json.dumps(settings, sort_keys=True), []):
            versions = ", ".join(f"{k} {v}" for k, v in environment.items() if k != "pid")
            lines.append((f"computed from {started}", versions))
        details.append(Details(f"{run.name}: {seed_of(settings)}", tuple(lines)))
    settings, about = network.settings, source.record.get("about", {})
    lines = [
        f"Network {settings['model']}, SHA-256 of architecture and weights {settings['model_sha256']}.",
        f"Data {settings['data']}, SHA-256 of inputs, labels and ids {settings['data_sha256']}.",
    ]
    lines += [f"{name}: {value}" for name, value in about.items() if name in ("command", "commit", "weights")]
    if "commit" not in about:
        lines.append("Commit and command are not part of a store's rows; versions are, below.")
    return Section("Provenance", tuple(lines), details=tuple(details))
