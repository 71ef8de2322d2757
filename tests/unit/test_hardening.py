"""Properties of what is read, typed, stored and bounded, whatever the input. Hostile files are in tests/faults.

Each property is tried on few examples every time and on many in the tests marked long; see tests/conftest.py.
"""

import ast
import math
from collections.abc import Callable
from fractions import Fraction
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import nn

from certify import (
    IBP,
    Certificate,
    InputError,
    PerExample,
    Threat,
    lower_confidence_bound,
    upper_confidence_bound,
)
from certify.campaign import Results, Store, export_log, read_log
from certify.campaign.runner import select
from certify.campaign.weights import resolve
from certify.noise import Noise
from paper_repro.__main__ import make_method, parse_epochs
from paper_repro.construct import construct
from paper_repro.data import Data
from tests import lower_bounds
from tests.unit.test_interval import NETWORKS, images, points_in_ball, random_
from tests.unit.test_logs import GOOD, HEADER
from tests.unit.test_noise import NOISES
from tests.unit.test_noise import UP as RISING

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("certify", "analysis", "paper_repro", "figures")
every = pytest.mark.parametrize("profile", ["short", pytest.param("long", marks=pytest.mark.long)])


def check(profile: str, holds: Callable[..., None], **examples: st.SearchStrategy[Any]) -> None:
    """Try a property on as many examples as the profile says."""
    settings.get_profile(profile)(given(**examples)(holds))()


# --- logs ----------------------------------------------------------------------------------------------------------

INT64 = st.integers(0, 2**63 - 1)
LOG_ROWS = st.lists(
    st.tuples(
        INT64, st.integers(0, 2**62), st.integers(-1, 2**62), st.booleans(), st.floats(0, 1e12), st.floats(0, 1e9)
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row[0],
)


@every
def test_a_log_means_what_it_prints(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"

    def holds(rows: list[tuple[int, int, int, bool, float, float]]) -> None:
        rows = [(i, y, y if right else p, right or p == y, 0.0 if p == -1 and not right else r, t)
                for i, y, p, right, r, t in rows]  # fmt: skip
        lines = [f"{i}\t{y}\t{p}\t{r!r}\t{int(right)}\t{t!r}" for i, y, p, right, r, t in rows]
        path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
        log = read_log(path)
        columns = (log.example, log.label, log.prediction, log.correct, log.radius, log.seconds)
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == rows

    check(profile, holds, rows=LOG_ROWS)


@every
def test_one_changed_cell_gives_the_same_log_or_an_error(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"

    def holds(column: int, cell: str) -> None:
        cells = GOOD.split("\t")
        cells[column] = cell
        path.write_text("\n".join([HEADER, "\t".join(cells)]), encoding="utf-8")
        try:
            log = read_log(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            return
        assert log.example.shape == (1,)
        assert bool(log.correct[0]) == (log.prediction[0] == log.label[0])
        assert math.isfinite(log.radius[0])
        assert log.radius[0] >= (0 if log.correct[0] else log.radius[0])

    numbers = st.integers().map(str) | st.floats().map(repr)
    check(profile, holds, column=st.integers(0, 5), cell=st.text(max_size=20) | numbers)


@every
def test_an_exported_log_claims_no_more_than_was_certified(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"

    def holds(radii: list[float], digits: int) -> None:
        n = len(radii)
        made = Certificate(
            prediction=torch.zeros(n, dtype=torch.int64),
            radius=torch.tensor(radii, dtype=torch.float64),
            norm="L2",
            subject="g",
            guarantee=PerExample(0.001),
            method="M()",
            samples=torch.ones(n, dtype=torch.int64),
        )
        export_log(Results({}, made, np.arange(n), np.zeros(n, np.int64), np.zeros(n)), path, digits=digits)
        printed = [line.split("\t")[3] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        for radius, text in zip(radii, printed, strict=True):
            assert 0 <= Fraction(radius) - Fraction(text) < Fraction(1, 10**digits)
        assert (read_log(path).radius <= np.array(radii) * (1 + 2**-52)).all(), "reading rounds to nearest"

    check(profile, holds, radii=st.lists(st.floats(0, 1e6), min_size=1, max_size=5), digits=st.integers(0, 17))


def test_a_quote_is_a_letter(tmp_path: Path) -> None:
    """Else one that is never closed would take all lines behind it for a cell."""
    path = tmp_path / "log.tsv"
    for cell in ('"1"', '"1'):
        path.write_text(
            "\n".join([HEADER, GOOD, f"1\t{cell}\t1\t0.5\t1\t1.0", "2\t1\t1\t0.5\t1\t1.0\n"]), encoding="utf-8"
        )
        with pytest.raises(InputError, match=r"log\.tsv, line 3: cannot read .*invalid literal for int"):
            read_log(path)


# --- what is typed -------------------------------------------------------------------------------------------------


def taken(*arguments: Any, **named: Any) -> tuple[Any, ...]:
    """A constructor that keeps what it was given."""
    return ("made", arguments, named)


NAMES: dict[str, Callable[..., Any]] = {"Pgd": taken, "Threat": taken}
Said = tuple[str, Any]
"""An expression, and what it means."""

QUOTIENT = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(lambda q: (f"{q[0]}/{q[1]}", q[0] / q[1]))
PLAIN: st.SearchStrategy[Said] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
).map(lambda value: (repr(value), value)) | QUOTIENT


def compound(inner: st.SearchStrategy[Said]) -> st.SearchStrategy[Said]:
    many = st.lists(inner, max_size=3)
    named = st.dictionaries(st.sampled_from(["eps", "steps", "norm"]), inner, max_size=3)

    def call(name: str, arguments: list[Said], keywords: dict[str, Said]) -> Said:
        text = ", ".join([*(t for t, _ in arguments), *(f"{k}={t}" for k, (t, _) in keywords.items())])
        return f"{name}({text})", taken(*(v for _, v in arguments), **{k: v for k, (_, v) in keywords.items()})

    tuples = many.map(lambda parts: (f"({''.join(t + ', ' for t, _ in parts)})", tuple(v for _, v in parts)))
    return tuples | st.builds(call, st.sampled_from(sorted(NAMES)), many, named)


EXPRESSIONS = st.recursive(PLAIN, compound, max_leaves=8)


@every
def test_an_expression_builds_what_it_says(profile: str) -> None:
    def holds(said: Said) -> None:
        text, meant = said
        built = construct(f"Pgd({text})", NAMES)
        assert built == taken(meant)
        assert repr(built) == repr(taken(meant)), "True is not 1, and 1 not 1.0"

    check(profile, holds, said=EXPRESSIONS)


@every
def test_what_is_no_expression_is_refused(profile: str) -> None:
    words = st.sampled_from(["Pgd", "Threat", "(", ")", ",", "=", "1", "0", "/", "-", "*", "**", ".", "eps", "'", '"',
                             "lambda:", "[", "]", "{", "}", ":=", "__import__", "__class__", " ", "\n", "\0", "#", "1j",
                             "if", "else", "for", "in", "await", "b''", "f'{1}'", "..."])  # fmt: skip

    def holds(text: str) -> None:
        # One name given twice means its last value to the parser; that is not what this is about.
        assume(text.count("eps=") < 2 and text.count("eps =") < 2)
        try:
            construct(text, NAMES)
        except InputError:
            return
        called = {n.func.id for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Call)}  # type: ignore[attr-defined]
        assert called <= set(NAMES)

    check(profile, holds, text=st.text(max_size=20) | st.lists(words, max_size=12).map("".join))


@every
def test_a_training_method_is_one_of_ours_or_an_error(profile: str) -> None:
    names = ["Erm", "FreeTraining", "PGDTraining", "Threat", "Gaussian", "NoiseAugmentation", "Ramp"]
    signs = ["(", ")", ", ", "replays=", "steps=", "'Linf'", '"L2"', "8/255", "0.5", "3", "-1", "None", "()"]
    words = st.sampled_from([*names, *signs])

    def holds(text: str) -> None:
        try:
            made = make_method(text)
        except InputError:
            return
        assert hasattr(made, "update")

    check(profile, holds, text=st.text(max_size=10) | st.lists(words, max_size=8).map("".join))


def numbered(n: int) -> Data:
    """n examples whose ids are ten times their positions."""
    return Data(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n), 10 * torch.arange(n))


BOUND = st.none() | st.integers(-50, 50) | st.sampled_from([-(10**9), 10**9])


@every
def test_indices_choose_what_a_slice_does(profile: str) -> None:
    def holds(n: int, start: int | None, stop: int | None, step: int | None, parts: int) -> None:
        shown = ["" if v is None else str(v) for v in (start, stop, step)][:parts]
        chosen = range(n)[slice(start, stop, step if parts == 3 else None)]
        if not chosen:
            with pytest.raises(InputError, match=r"^need at least one example"):
                select(numbered(n), ":".join(shown))
            return
        x, y, ids = select(numbered(n), ":".join(shown))
        assert ids == [10 * i for i in chosen]
        assert x[:, 0].tolist() == y.tolist() == list(chosen)

    steps = st.none() | st.integers(1, 60)
    check(profile, holds, n=st.integers(1, 40), start=BOUND, stop=BOUND, step=steps, parts=st.integers(2, 3))


@every
def test_other_indices_are_refused(profile: str) -> None:
    def holds(text: str) -> None:
        try:
            _, _, ids = select(numbered(20), text)
        except InputError as error:
            assert repr(text) in str(error)  # noqa: PT017
            return
        assert ids == [10 * i for i in range(20)[slice(*(int(p) if p else None for p in text.split(":")))]]

    check(profile, holds, text=st.text(max_size=12) | st.text("0123456789:-_ +.", max_size=10))


@every
def test_a_callable_is_found_or_refused(profile: str) -> None:
    def holds(text: str) -> None:
        try:
            found = resolve(text)
        except InputError as error:
            assert repr(text.partition(":")[0]) in str(error) or repr(text) in str(error)  # noqa: PT017
            return
        module, _, attribute = text.partition(":")
        assert callable(found)
        assert found.__name__ == attribute
        assert module.split(".")[0] in ("math", "json")

    words = st.sampled_from(
        ["math", "json", ":", ".", "sqrt", "loads", "decoder", "JSONDecoder", "pi", "", " ", "\0", "/"]
    )
    check(profile, holds, text=st.lists(words, max_size=6).map("".join) | st.text("\0:./\\é \udcff", max_size=8))


@every
def test_epochs_are_numbers_or_refused(profile: str) -> None:
    def holds(text: str) -> None:
        try:
            found = parse_epochs(text)
        except InputError as error:
            assert repr(text) in str(error)  # noqa: PT017
            return
        assert found == tuple(int(part) for part in text.split(",") if text)

    check(profile, holds, text=st.text(max_size=10) | st.lists(st.integers().map(str)).map(",".join))


# --- stores --------------------------------------------------------------------------------------------------------

PLAIN_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STORED_ROWS = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 2**63 - 1),
        st.floats(0, allow_nan=False),
        st.integers(0, 2**63 - 1),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)


@every
def test_a_store_gives_back_what_it_was_given(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    def holds(rows: list[tuple[Any, ...]], counted: bool, named: dict[str, Any], subject: str, seconds: float) -> None:
        path.unlink(missing_ok=True)
        example, label, prediction, radius, samples, counts, w = zip(*rows, strict=True)
        made = Certificate(
            prediction=torch.tensor(prediction),
            radius=torch.tensor(radius, dtype=torch.float64),
            norm="L2",
            subject=subject,
            guarantee=PerExample(0.001),
            method=subject,
            samples=torch.tensor(samples),
            counts=torch.tensor(counts) if counted else None,
            w=torch.tensor(w, dtype=torch.float64) if counted else None,
        )
        with Store(path, create=True) as store:
            run = store.open_run({**named, "model": "a:b"}, named)
            run.append(made, example, label, seconds)
            assert run.done() == set(example)
        with Store(path) as store:
            (read,) = store.results()
        order = np.argsort(np.array(example))
        assert dict(read.settings) == {**named, "model": "a:b"}
        assert read.example.tolist() == [example[i] for i in order]
        assert read.label.tolist() == [label[i] for i in order]
        assert (read.seconds >= 0).all()
        for name in ("prediction", "radius", "samples", "counts", "w"):
            written, back = getattr(made, name), getattr(read.certificate, name)
            assert (written is None) == (back is None)
            assert back is None or torch.equal(written[torch.from_numpy(order)], back)
        assert read.certificate.header() == made.header()

    check(
        profile,
        holds,
        rows=STORED_ROWS,
        counted=st.booleans(),
        named=st.dictionaries(st.text(), PLAIN_VALUES, max_size=3),
        subject=st.text(),
        seconds=st.floats(),
    )


# --- bounds --------------------------------------------------------------------------------------------------------

ALPHA = st.floats(1e-12, 0.5)
COUNTS = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@every
def test_confidence_bounds_enclose_the_share(profile: str) -> None:
    def holds(counts: tuple[int, int], alpha: float) -> None:
        k, n = counts
        lower, upper = lower_confidence_bound(k, n, alpha), upper_confidence_bound(k, n, alpha)
        assert 0 <= lower <= upper <= 1
        assert Fraction(lower) <= Fraction(k, n) <= Fraction(upper)
        assert lower_confidence_bound(k, n, alpha / 2) <= lower, "more confidence promises less"
        assert upper <= upper_confidence_bound(k, n, alpha / 2)
        if k < n:
            assert lower <= lower_confidence_bound(k + 1, n, alpha)
            assert upper <= upper_confidence_bound(k + 1, n, alpha)

    check(profile, holds, counts=COUNTS, alpha=ALPHA)


@every
def test_radii_rise_with_the_top_class_and_fall_with_its_rival(profile: str) -> None:
    def holds(noise: Noise, a: list[float], b: list[float]) -> None:
        (low_a, high_a), (low_b, high_b) = sorted(a), sorted(b)
        assert 0 <= noise.radius(low_a, high_b) <= noise.radius(high_a, high_b) * RISING
        assert noise.radius(low_a, high_b) <= noise.radius(low_a, low_b) * RISING
        assert noise.radius(low_a) <= noise.radius(high_a) * RISING

    pair = st.lists(st.floats(0, 1), min_size=2, max_size=2)
    check(profile, holds, noise=st.sampled_from(NOISES), a=pair, b=pair)


@every
def test_interval_bounds_contain_what_the_network_does(profile: str) -> None:
    def holds(make: Callable[[], nn.Module], norm: Any, eps: float, outward: bool, seed: int) -> None:
        model, x, threat = random_(make(), seed), images(2, seed + 1), Threat(norm, eps)
        ends = IBP(threat, outward=outward).bounds(model, x)
        assert (ends.lower <= ends.upper).all()
        for z in points_in_ball(x, threat, 4, seed + 2):
            logits = model(z)
            # What is computed at a point is rounded too: 1e-12 is for that alone.
            assert (logits >= ends.lower - 1e-12).all()
            assert (logits <= ends.upper + 1e-12).all()

    check(
        profile,
        holds,
        make=st.sampled_from(NETWORKS),
        norm=st.sampled_from(["Linf", "L2", "L1"]),
        eps=st.floats(0, 2),
        outward=st.booleans(),
        seed=st.integers(0, 2**31),
    )


# --- what it is installed beside -----------------------------------------------------------------------------------


def test_every_dependency_has_a_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """So that a release can be tried with the oldest packages that it says it takes: see tests/lower_bounds.py."""
    lower_bounds.main(["torch"])
    printed = capsys.readouterr().out.split()
    assert "numpy==2.0" in printed
    assert not [p for p in printed if p.startswith("torch")]
    for requirement in printed:
        name, version = requirement.split("==")
        assert Version(installed(name)) >= Version(version)


def test_bounds_of_all_forms() -> None:
    assert lower_bounds.lower_bounds(["a>=1", "b[x] >=2.0,<3", "c>=1.5; python_version < '4'"]) == {
        "a": "1",
        "b": "2.0",
        "c": "1.5",
    }
    with pytest.raises(ValueError, match=r"^need a lower bound for each dependency; got none for d, e==1$"):
        lower_bounds.lower_bounds(["a>=1", "d", "e==1"])
