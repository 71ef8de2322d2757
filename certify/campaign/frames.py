"""Stored results as pandas data frames, a row per example."""

import importlib
from typing import Any

from certify.campaign.attack_rows import AttackResults
from certify.campaign.results import Published, Results
from certify.certificate import Certificate
from certify.errors import InputError


def to_frame(results: Certificate | Results | Published | AttackResults) -> Any:
    """A pandas.DataFrame of certificates, published rows or attacks.

    Args:
        results: Of a run of a `Store`, a log, or a certifier.

    Returns: One row per example. `attrs` holds what all of them share, as far as it is known: settings, and a
        certificate's header. What a row proves, and how, is told by these alone.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise InputError(f"data frames need pandas: pip install 'robust-radius[interop]' ({error})") from error
    columns, shared = _content(results)
    frame = pandas.DataFrame(columns)
    frame.attrs.update(shared)
    return frame


def _content(results: Certificate | Results | Published | AttackResults) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns, and what all rows share."""
    match results:
        case Certificate():
            return _columns(results), results.header()
        case Results():
            own = {"example": results.example, "label": results.label}
            correct = results.certificate.prediction.numpy() == results.label
            return (
                {**own, **_columns(results.certificate), "correct": correct, "seconds": results.seconds},
                {"name": results.name, "settings": dict(results.settings), **results.certificate.header()},
            )
        case Published():
            names = ("example", "label", "prediction", "radius", "correct")
            return {name: getattr(results, name) for name in names}, {"name": results.name}
        case AttackResults():
            rows = results.rows
            names = ("example", "label", "prediction", "distance", "broken_by", "seconds")
            columns: dict[str, Any] = {name: getattr(rows, name) for name in names}
            costs = {name: getattr(rows, name).sum(1) for name in ("forwards", "backwards")}
            shared = {"name": results.name, "settings": dict(results.settings)}
            return {**columns, **costs, "correct": rows.correct, "robust": rows.robust}, shared


def _columns(certificate: Certificate) -> dict[str, Any]:
    names = ("prediction", "radius", "samples") + (() if certificate.w is None else ("w",))
    return {name: getattr(certificate, name).numpy() for name in names}
