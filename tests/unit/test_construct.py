"""Methods on a command line: the expression that constructs them, and nothing else that Python could do."""

from dataclasses import dataclass
from typing import Any

import pytest

from certify import Gaussian, InputError, Threat
from paper_repro.__main__ import make_method, parse_epochs
from paper_repro.construct import construct
from paper_repro.training import (
    Erm,
    FastTraining,
    FreeTraining,
    NoiseAugmentation,
    PGDTraining,
    Ramp,
    SplitAugmentation,
    Trades,
)


@dataclass(frozen=True)
class Box:
    low: Any = 0
    high: Any = None


NAMES = {"Box": Box}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Box", Box()),
        (" Box() ", Box()),
        ("Box(8/255, high=-2)", Box(8 / 255, -2)),
        ("Box((1, 2.5), high=[1e-3])", Box((1, 2.5), (1e-3,))),
        ("Box('a', high=Box(None, True))", Box("a", Box(None, True))),
    ],
)
def test_expressions_construct(text: str, expected: Box) -> None:
    assert construct(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Box(", r"^need an expression such as Erm\(\) or .*; got 'Box\('"),
        ("1 + 1", r"^need numbers, strings, tuples and calls; got '1 \+ 1'$"),
        ("Box(1 + 1)", r"^need numbers, strings, tuples and calls; got '1 \+ 1'$"),
        ("Box(1 / 0)", r"^need numbers, strings, tuples and calls; got '1 / 0'$"),
        ("Box(low)", r"^need numbers, strings, tuples and calls; got 'low'$"),
        ("Box(__import__('os'))", r"^need one of Box; got '__import__'$"),
        ("Box().low()", r"^need one of Box; got 'Box\(\)\.low'$"),
        ("Box(lambda: 1)", r"^need numbers, strings, tuples and calls; got 'lambda: 1'$"),
        ("Bax()", r"^need one of Box; got 'Bax'$"),
        ("Box(depth=1)", r"^Box takes low, high; .*unexpected keyword argument 'depth'"),
        ("Box(1, 2, 3)", r"^Box takes low, high; .*positional arguments"),
        ("Box(**Box())", r"^Box takes low, high; .*"),
        ("Box(low=1, low=2)", r"^need an expression such as .*repeated|^Box is given an argument twice"),
        (f"Box({10**400} / 3)", r"^need a quotient that a float holds; got '10+ / 3'$"),
        ("Box(" + "(" * 100_000, r"^need an expression such as Erm\(\)"),
        ("Box('\ud800')", r"^need an expression such as Erm\(\)"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        construct(text, NAMES)


@pytest.mark.parametrize(
    "method",
    [
        Erm(),
        SplitAugmentation(0.5),
        FreeTraining(Threat("Linf", 8 / 255)),
        FastTraining(Threat("Linf", 0.3), ramp=Ramp("cosine", high=0.45)),
        PGDTraining(Threat("L2", 0.5, box=None), step_size=0.1),
        Trades(Threat("Linf", 0.031), beta=1.0),
        NoiseAugmentation(Gaussian(0.5)),
    ],
    ids=repr,
)
def test_a_method_is_constructed_by_what_it_prints(method: Any) -> None:
    """What a config records can be run again."""
    assert make_method(repr(method)) == method


def test_short_names_stay() -> None:
    assert make_method("erm") == Erm()
    assert make_method("gaussian", 0.25) == NoiseAugmentation(Gaussian(0.25))
    assert make_method("split", 0.5, 15) == SplitAugmentation(0.5, 15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "magic",
            r"^need a method among erm, split, gaussian, laplace, uniform, [\w, ]*FreeTraining[\w, ]*; got 'magic'$",
        ),
        ("Ramp()", r"^need a method among [\w, ]+; got Ramp\(shape='linear'.*\)$"),
        ("FreeTraining(Threat('Linf', 0.1), steps=2)", r"^FreeTraining takes threat, replays, ramp; .*'steps'"),
        ("FreeTraining(Threat('Linf', -1))", r"^need a finite eps >= 0; got -1$"),
        ("Trades", r"^Trades takes threat, beta, steps, step_size, ramp; .*missing 1 required .*'threat'"),
    ],
)
def test_what_is_no_method_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_method(text)


def test_epochs_are_integers_between_commas() -> None:
    assert parse_epochs("") == ()
    assert parse_epochs("100, 150") == (100, 150)
    with pytest.raises(InputError, match=r"^need comma-separated epochs, such as 100,150,200; got '1;2'$"):
        parse_epochs("1;2")
