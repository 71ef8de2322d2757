"""Published logs: read strictly, written rounded down, and never taken for certificates."""

import csv
import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from certify import ABSTAIN, Certificate, Gaussian, InputError, PerExample, Smoothing
from certify.__main__ import app
from certify.campaign import Published, Results, Store, export_log, read_log
from certify.campaign.logs import COLUMNS, floor_decimal
from certify.campaign.tables import read_source

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
METHOD = Smoothing(Gaussian(0.5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "paper_sigma_0.5.tsv"


def lines(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def results(radii: list[float]) -> Results:
    """A run whose even examples are right and whose odd ones are wrong; a radius of 0 abstains."""
    radius = torch.tensor(radii, dtype=torch.float64)
    n = len(radii)
    return Results(
        settings={"model": "a:b"},
        certificate=Certificate(
            prediction=torch.where(radius > 0, torch.arange(n) % 2, ABSTAIN),
            radius=radius,
            norm="L2",
            subject="g",
            guarantee=PerExample(0.001),
            method=METHOD,
            samples=torch.full((n,), 100_100),
        ),
        example=np.arange(0, 20 * n, 20),
        label=np.zeros(n, np.int64),
        seconds=np.full(n, 0.25),
    )


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_log_is_read_as_printed(path: Path) -> None:
    lines(path, "0\t3\t3\t0.378\t1\t15.4", "20\t7\t-1\t0.0\t0\t15.6", "40\t4\t0\t1.09\t0\t0:00:14.367581")
    log = read_log(path)
    assert type(log) is Published
    assert log.name == "paper_sigma_0.5"
    assert log.example.tolist() == [0, 20, 40]
    assert log.label.tolist() == [3, 7, 4]
    assert log.prediction.tolist() == [3, ABSTAIN, 0]
    assert log.radius.tolist() == [0.378, 0.0, 1.09]
    assert log.correct.tolist() == [True, False, False]
    assert log.seconds.tolist() == [15.4, 15.6, 14.367581]
    assert log.scores().tolist() == [0.378, -math.inf, -math.inf]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15.4", 15.4),
        ("0", 0.0),
        ("1e-3", 0.001),
        ("0:00:00.591566", 0.591566),
        ("0:01:50", 110.0),
        ("2:03:04.5", 2 * 3600 + 3 * 60 + 4.5),
        ("26:00:00", 26 * 3600.0),
        ("1 day, 0:00:01", 86_401.0),
        ("12 days, 1:00:00.25", 12 * 86_400 + 3600.25),
    ],
)
def test_times_in_every_form_that_python_prints(path: Path, text: str, seconds: float) -> None:
    assert read_log(lines(path, f"0\t1\t1\t0.5\t1\t{text}")).seconds.tolist() == [seconds]


def test_line_ends_of_another_system(path: Path) -> None:
    path.write_bytes((HEADER + "\r\n0\t1\t1\t0.5\t1\t2.5\r\n").encode())
    assert read_log(path).seconds.tolist() == [2.5]


GOOD = "0\t1\t1\t0.5\t1\t1.0"
CANNOT = r"line 3: cannot read .* as \['idx', 'label', 'predict', 'radius', 'correct', 'time'\] "


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x\t1\t1\t0.5\t1\t1.0", CANNOT + r"\(invalid literal for int"),
        ("2.0\t1\t1\t0.5\t1\t1.0", CANNOT + r"\(invalid literal for int"),
        ("2\t\t1\t0.5\t1\t1.0", CANNOT + r"\(invalid literal for int\(\) with base 10: ''\)"),
        ("2\t1\t1\t0,5\t1\t1.0", CANNOT + r"\(could not convert string to float: '0,5'\)"),
        ("2\t1\t1\t0.5\tTrue\t1.0", CANNOT + r"\(invalid literal for int\(\) with base 10: 'True'\)"),
        ("2\t1\t1\t0.5\t1\tsoon", CANNOT + r"\(could not convert string to float: 'soon'\)"),
        ("2\t1\t1\t0.5\t1\t0:1:2", CANNOT + r"\(could not convert string to float: '0:1:2'\)"),
        ("2\t1\t1\t0.5\t1\tnan", CANNOT + r"\(a time that is negative or not finite\)"),
        ("2\t1\t1\t0.5\t1\t-1", CANNOT + r"\(a time that is negative or not finite\)"),
        ("2\t1\t1\t0.5\t1", CANNOT + r"\(list index out of range\)"),
        ("2\t1", CANNOT + r"\(not enough values to unpack"),
        ("", CANNOT + r"\(not enough values to unpack"),
        ("2\t1\t1\t0.5\t1\t1.0\t", CANNOT + r"\(7 cells\)"),
        ("2 1 1 0.5 1 1.0", CANNOT + r"\(invalid literal for int"),
        ("-2\t1\t1\t0.5\t1\t1.0", CANNOT + r"\(idx, label or predict out of range\)"),
        ("2\t1\t-2\t0.5\t0\t1.0", CANNOT + r"\(idx, label or predict out of range\)"),
        ("2\t-1\t-1\t0.0\t1\t1.0", CANNOT + r"\(idx, label or predict out of range\)"),
        (f"{2**63}\t1\t1\t0.5\t1\t1.0", CANNOT + r"\(idx, label or predict out of range\)"),
        ("2\t1\t1\t0.5\t2\t1.0", r"line 3: need `correct` 0 or 1; got 2 \(a running count, perhaps\)$"),
        ("2\t1\t1\t0.5\t-1\t1.0", r"line 3: need `correct` 0 or 1; got -1"),
        ("2\t1\t1\t0.5\t0\t1.0", r"line 3: `correct` is 0, but label 1, predict 1$"),
        ("2\t1\t3\t0.5\t1\t1.0", r"line 3: `correct` is 1, but label 1, predict 3$"),
        ("2\t1\t-1\t0.0\t1\t1.0", r"line 3: `correct` is 1, but label 1, predict -1$"),
        ("2\t1\t1\t-0.5\t1\t1.0", r"line 3: need a finite radius >= 0, and 0 on abstention; got -0\.5$"),
        ("2\t1\t1\tinf\t1\t1.0", r"line 3: need a finite radius >= 0, and 0 on abstention; got inf$"),
        ("2\t1\t1\t1e999\t1\t1.0", r"line 3: need a finite radius >= 0, and 0 on abstention; got 1e999$"),
        ("2\t1\t1\tnan\t1\t1.0", r"line 3: need a finite radius >= 0, and 0 on abstention; got nan$"),
        ("2\t1\t-1\t0.5\t0\t1.0", r"line 3: need a finite radius >= 0, and 0 on abstention; got 0\.5$"),
        ("0\t2\t2\t0.5\t1\t1.0", r"paper_sigma_0\.5\.tsv: need each index once; index 0 occurs 2 times$"),
    ],
)
def test_a_wrong_row_is_refused_by_line(path: Path, row: str, message: str) -> None:
    lines(path, GOOD, row)
    with pytest.raises(InputError, match=message):
        read_log(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"need the header \['idx', .*'time'\]; got an empty file$"),
        (b"\n" + HEADER.encode(), r"need the header .*; got \[\]$"),
        (HEADER.replace("predict", "prediction").encode(), r"need the header .*; got \['idx', 'label', 'prediction'"),
        (HEADER.replace("\tradius", "").encode(), r"need the header .*; got \['idx', 'label', 'predict', 'correct'"),
        (HEADER.replace("\t", ",").encode(), r"need the header .*; got \['idx,label,predict"),
        (GOOD.encode(), r"need the header .*; got \['0', '1', '1'"),
        (HEADER.encode() + b"\n", r"paper_sigma_0\.5\.tsv: need at least one row; got none$"),
        (b"\xff\xfe\x00", r"^cannot read the log .*: 'utf-8' codec can't decode"),
        (HEADER.encode() + b"\n" + b"9" * 200_000, r"^cannot read the log .*: field larger than field limit"),
    ],
)
def test_a_file_that_is_no_log_is_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_log(path)


def test_a_missing_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read the log .*nothing\.tsv: .*No such file"):
        read_log(tmp_path / "nothing.tsv")
    with pytest.raises(InputError, match=r"^cannot read the log .*: .*Is a directory"):
        read_log(tmp_path)


CELL = st.one_of(
    st.integers(-2, 3).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "-1", "1_0", "0:00:01", "1 day, 0:00:01", "٣", "1e999", '"', "0x1", "\0"]),
    st.text(max_size=5),
)
ROW = st.lists(CELL, min_size=5, max_size=7).map("\t".join)
FILES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.lists(ROW, max_size=4).map(lambda rows: "\n".join([HEADER, *rows]).encode()),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "log.tsv"


@settings(max_examples=400, deadline=None)
@given(content=FILES)
def test_no_file_breaks_the_reader(scratch: Path, content: bytes) -> None:
    """Whatever the bytes, a log or an InputError; and a log that is read can be kept and tabulated."""
    scratch.write_bytes(content)
    try:
        log = read_log(scratch)
    except InputError:
        return
    assert len(log.example) >= 1
    assert np.isfinite(log.radius).all()
    assert (log.radius >= 0).all()
    assert (log.correct == (log.prediction == log.label)).all()
    assert not log.correct[log.prediction == ABSTAIN].any()
    database = scratch.with_suffix(".sqlite")
    database.unlink(missing_ok=True)
    with Store(database, create=True) as store:
        store.add_log(log)
        (kept,) = store.published()
    order = np.argsort(log.example)
    for name in ("example", "label", "prediction", "radius", "correct", "seconds"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(log, name)[order])


ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(-1, 9), st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=5
)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS)
def test_every_good_log_is_read(scratch: Path, rows: list[tuple[int, int, float, float]]) -> None:
    """The twin of the test above, which alone a reader that refuses everything would pass."""
    text = [HEADER]
    for number, (label, prediction, radius, seconds) in enumerate(rows):
        shown = 0.0 if prediction == ABSTAIN else radius
        text.append(f"{number}\t{label}\t{prediction}\t{shown!r}\t{int(label == prediction)}\t{seconds!r}")
    scratch.write_text("\n".join(text), encoding="utf-8")
    log = read_log(scratch)
    assert log.radius.tolist() == [0.0 if p == ABSTAIN else r for _, p, r, _ in rows]
    assert log.seconds.tolist() == [s for *_, s in rows]


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_run_becomes_a_log_with_radii_rounded_down(path: Path) -> None:
    radii = [0.9999, 0.5, 0.0, 0.0005, 1.0 - 2**-53, 3.8115]
    export_log(results(radii), path)
    assert path.read_text() == (
        f"{HEADER}\n"
        "0\t0\t0\t0.999\t1\t0.250000\n"
        "20\t0\t1\t0.500\t0\t0.250000\n"
        "40\t0\t-1\t0.000\t0\t0.250000\n"
        "60\t0\t1\t0.000\t0\t0.250000\n"
        "80\t0\t0\t0.999\t1\t0.250000\n"
        "100\t0\t1\t3.811\t0\t0.250000\n"
    )
    log = read_log(path)
    assert log.radius.tolist() == [0.999, 0.5, 0.0, 0.0, 0.999, 3.811]
    assert log.correct.tolist() == [True, False, False, False, True, False]
    assert log.example.tolist() == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize(("digits", "shown"), [(0, "0"), (1, "0.9"), (4, "0.9998"), (17, "0.99990000000000001")])
def test_as_many_digits_as_asked_for(path: Path, digits: int, shown: str) -> None:
    """0.9999 is a float just above that decimal: 17 digits show it, 4 may not claim what lies below."""
    export_log(results([0.9999 if digits == 17 else math.nextafter(0.9999, 0)]), path, digits=digits)
    assert path.read_text().splitlines()[1].split("\t")[3] == shown


@pytest.mark.parametrize("digits", [-1, 18])
def test_digits_out_of_range_are_refused(path: Path, digits: int) -> None:
    with pytest.raises(InputError, match=rf"^need 0 <= digits <= 17; got {digits}$"):
        export_log(results([0.5]), path, digits=digits)
    assert not path.exists()


@settings(max_examples=300, deadline=None)
@given(value=st.floats(0, 1e6), digits=st.integers(0, 17))
def test_floor_is_exact(value: float, digits: int) -> None:
    """In rationals: the printed number is at most the value, and less than one unit of the last digit below it."""
    shown = Fraction(floor_decimal(value, digits))
    assert 0 <= Fraction(value) - shown < Fraction(1, 10**digits)


# --- beside certificates ------------------------------------------------------------------------------------------


def test_import_keeps_published_rows_and_the_table_shows_them(tmp_path: Path, path: Path) -> None:
    lines(
        path, "0\t3\t3\t0.378\t1\t15.4", "20\t7\t-1\t0.0\t0\t15.6", "40\t4\t4\t1.09\t1\t14.4", "60\t4\t0\t1.5\t0\t14.4"
    )
    other = lines(tmp_path / "other.tsv", GOOD)
    store = tmp_path / "store.sqlite"
    imported = CliRunner().invoke(app, ["import", str(path), str(other), "--store", str(store)], catch_exceptions=False)
    assert imported.exit_code == 0
    assert imported.stderr.splitlines() == ["paper_sigma_0.5: 4 rows, 2 correct", "other: 1 rows, 1 correct"]

    kept = read_source(store)
    assert [type(k) for k in kept] == [Published, Published]
    with Store(store) as file:
        assert file.results() == [], "an imported log is no run"

    def table(*sources: Path) -> list[dict[str, str]]:
        command = ["table", *map(str, sources), "--format", "csv", "--radii", "0,0.5,1.25"]
        printed = CliRunner().invoke(app, command, catch_exceptions=False)
        assert printed.exit_code == 0
        return list(csv.DictReader(io.StringIO(printed.stdout)))

    body = table(store)
    assert body == table(path, other), "the store adds and takes nothing"
    shown = body[0]
    assert (shown["source"], shown["norm"], shown["m"]) == ("paper_sigma_0.5", "as published", "4")
    assert (shown["votes"], shown["alpha"], shown["quantity"]) == ("", "0.001 assumed", "observed")
    assert [shown[c] for c in ("ACR", "r=0", "r=0.5", "r=1.25")] == ["0.3670", "0.500", "0.250", "0.000"]


def test_an_import_with_one_bad_log_keeps_none(tmp_path: Path, path: Path) -> None:
    bad = lines(tmp_path / "bad.tsv", "0\t1\t1\t0.5\t7\t1.0")
    lines(path, GOOD)
    store = tmp_path / "store.sqlite"
    result = CliRunner().invoke(app, ["import", str(path), str(bad), "--store", str(store)])
    assert isinstance(result.exception, InputError)
    assert "bad.tsv, line 2: need `correct` 0 or 1; got 7" in str(result.exception)
    assert not store.exists()


def test_export_writes_the_run_that_was_asked_for(tmp_path: Path, path: Path) -> None:
    store = tmp_path / "store.sqlite"
    with Store(store, create=True) as file:
        for seed, radii in enumerate(([0.1234], [0.9999])):
            run = file.open_run({"model": "a:b", "seed": seed}, {}, add=True)
            run.append(results(radii).certificate, [5], [0], seconds=2.0)
    for options, radius in (([], "0.123"), (["--run", "2"], "0.999"), (["--run", "2", "--digits", "1"], "0.9")):
        done = CliRunner().invoke(app, ["export", str(store), str(path), *options], catch_exceptions=False)
        assert done.exit_code == 0
        assert path.read_text().splitlines() == [HEADER, f"5\t0\t0\t{radius}\t1\t2.000000"]
    for number in ("0", "3"):
        result = CliRunner().invoke(app, ["export", str(store), str(path), "--run", number])
        assert isinstance(result.exception, InputError)
        assert str(result.exception) == f"need a run between 1 and 2; got {number}"


def test_the_columns_are_the_published_ones() -> None:
    assert "\t".join(COLUMNS) == HEADER
