"""The store: rows come back bit for bit, settings never mix, and a damaged file is refused and left as it is."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certify import ABSTAIN, Certificate, Deterministic, Gaussian, InputError, PerExample, Smoothing
from certify.campaign import Published, Results, Store, runner
from certify.campaign.attack_rows import AttackRows, attack_results, open_attack_run

METHOD = Smoothing(Gaussian(0.5), n0=10, n=100)
SETTINGS = {"model": "nets:small", "model_sha256": "ab", "data": "digits test", "method": repr(METHOD), "seed": 0}
PLACE = {"python": "3", "device": "cpu"}

# Radii that fewer than 17 digits, or single precision, would change.
RADII = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 0.0, 2.0**-40 + 1, 0.5]


def certificate(radii: Sequence[float] = RADII, *, counts: bool = True, prediction: int = 3) -> Certificate:
    """One that abstains exactly where the radius is 0."""
    radius = torch.tensor(radii, dtype=torch.float64)
    votes = torch.arange(4 * len(radii)).view(-1, 4) * 2**40  # beyond 32 bits
    return Certificate(
        prediction=torch.where(radius > 0, prediction, ABSTAIN),
        radius=radius,
        norm="L2",
        subject="g(Gaussian(sigma=0.5))",
        guarantee=PerExample(0.001),
        method=METHOD,
        samples=torch.full((len(radii),), 110),
        counts=votes if counts else None,
    )


def fill(path: Path, examples: Sequence[int] = range(7), **changes: Any) -> None:
    """A store with one run."""
    with Store(path, create=True) as store:
        run = store.open_run({**SETTINGS, **changes}, PLACE)
        run.append(certificate(RADII[: len(examples)]), examples, [3] * len(examples), seconds=7.0)


def only(path: Path) -> Results:
    with Store(path) as store:
        (results,) = store.results()
    return results


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "store.sqlite"


# --- rows ---------------------------------------------------------------------------------------------------------


def test_rows_come_back_bit_for_bit(path: Path) -> None:
    written = certificate()
    fill(path)
    read = only(path)
    got = read.certificate
    assert got.radius.tolist() == RADII
    assert got.prediction.tolist() == written.prediction.tolist() == [3, 3, 3, 3, -1, 3, 3]
    assert got.counts is not None
    assert got.counts.tolist() == written.counts.tolist()
    assert (got.counts.dtype, got.radius.dtype) == (torch.int64, torch.float64)
    assert got.samples.tolist() == [110] * 7
    assert (got.norm, got.subject, got.guarantee) == ("L2", "g(Gaussian(sigma=0.5))", PerExample(0.001))
    assert (got.region, got.arithmetic) == (written.region, written.arithmetic)
    assert got.method == repr(METHOD), "a method comes back as its text"
    assert dict(read.settings) == SETTINGS
    assert read.example.tolist() == list(range(7))
    assert read.label.tolist() == [3] * 7
    assert read.seconds.tolist() == [1.0] * 7, "seven seconds for seven examples"
    assert read.name == "small g(Gaussian(sigma=0.5))"
    assert read.scores().tolist() == [r if r else -np.inf for r in RADII]


def test_a_certificate_without_votes(path: Path) -> None:
    made = certificate([0.25, 0.5], counts=False)
    deterministic = Certificate(**{f: getattr(made, f) for f in made.__slots__} | {"guarantee": Deterministic()})
    with Store(path, create=True) as store:
        store.open_run(SETTINGS, PLACE).append(deterministic, [0, 1], [3, 3], 1.0)
        (read,) = store.results()
    assert read.certificate.counts is None
    assert read.certificate.w is None
    assert read.certificate.guarantee == Deterministic()


def test_the_draw_of_a_randomised_bound_is_kept(path: Path) -> None:
    """Whoever checks the radius again needs the very number."""
    made = certificate([0.25, 0.5])
    draws = torch.tensor([1 / 3, 2.0**-53], dtype=torch.float64)
    randomised = Certificate(**{f: getattr(made, f) for f in made.__slots__} | {"w": draws})
    with Store(path, create=True) as store:
        store.open_run(SETTINGS, PLACE).append(randomised, [0, 1], [3, 3], 1.0)
        (read,) = store.results()
    assert read.certificate.w is not None
    assert read.certificate.w.tolist() == [1 / 3, 2.0**-53]


def test_rows_are_ordered_by_example_however_they_were_written(path: Path) -> None:
    with Store(path, create=True) as store:
        run = store.open_run(SETTINGS, PLACE)
        run.append(certificate([0.5, 0.25]), [50, 7], [3, 1], 1.0)
        run.append(certificate([0.125]), [20], [2], 1.0)
        assert run.done() == {7, 20, 50}
        (read,) = store.results()
    assert read.example.tolist() == [7, 20, 50]
    assert read.certificate.radius.tolist() == [0.25, 0.125, 0.5]
    assert read.label.tolist() == [1, 2, 3]


def test_a_row_that_is_there_stays(path: Path) -> None:
    with Store(path, create=True) as store:
        run = store.open_run(SETTINGS, PLACE)
        run.append(certificate([0.5]), [1], [3], 1.0)
        run.append(certificate([0.75, 0.25], prediction=2), [1, 2], [9, 9], 1.0)
        (read,) = store.results()
    assert read.example.tolist() == [1, 2]
    assert read.certificate.radius.tolist() == [0.5, 0.25]
    assert read.certificate.prediction.tolist() == [3, 2]
    assert read.label.tolist() == [3, 9]


def test_a_batch_is_written_whole_or_not_at_all(path: Path) -> None:
    with Store(path, create=True) as store:
        run = store.open_run(SETTINGS, PLACE)
        with pytest.raises(OverflowError):  # an id beyond 64 bits, behind a row that is in order
            run.append(certificate([0.5, 0.5]), [1, 2**70], [3, 3], 1.0)
        assert run.done() == set()
        assert store.results() == []
        run.append(certificate([0.5]), [1], [3], 1.0)
        assert run.done() == {1}


def test_append_checks_lengths_and_kind(path: Path) -> None:
    with Store(path, create=True) as store:
        run = store.open_run(SETTINGS, PLACE)
        for examples, labels in (([1], [3, 3]), ([1, 2], [3]), ([1, 2, 3], [3, 3, 3])):
            with pytest.raises(InputError, match=rf"^need as many examples and labels as rows, 2; got {len(examples)}"):
                run.append(certificate([0.5, 0.5]), examples, labels, 1.0)
        run.append(certificate([0.5]), [1], [3], 1.0)
        made = certificate([0.5])
        other = Certificate(**{f: getattr(made, f) for f in made.__slots__} | {"guarantee": PerExample(0.01)})
        with pytest.raises(InputError, match=r'^a run has one kind of certificate; this batch is .*"alpha": 0\.01'):
            run.append(other, [2], [3], 1.0)
        assert run.done() == {1}


def test_a_run_without_rows_is_no_result(path: Path) -> None:
    with Store(path, create=True) as store:
        store.open_run(SETTINGS, PLACE)
        assert store.results() == []
        assert store.published() == []


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"\(seed: stored 0, asked 1\)\. Settings never mix: choose another store, or --add"),
        ({"model_sha256": "cd"}, r"\(model_sha256: stored 'ab', asked 'cd'\)"),
        ({"seed": 1, "data": "mnist"}, r"\(data: stored 'digits test', asked 'mnist'; seed: stored 0, asked 1\)"),
        ({"colour": "red"}, r"\(colour: stored None, asked 'red'\)"),
    ],
)
def test_other_settings_are_refused_and_named(path: Path, changed: dict[str, Any], message: str) -> None:
    fill(path)
    with Store(path) as store:
        with pytest.raises(InputError, match=r"store\.sqlite holds a run with other settings " + message):
            store.open_run({**SETTINGS, **changed}, PLACE)
        assert len(store.results()) == 1


def test_the_same_settings_resume_whatever_their_order(path: Path) -> None:
    fill(path, range(3))
    with Store(path) as store:
        run = store.open_run(dict(reversed(SETTINGS.items())), PLACE)
        assert run.done() == {0, 1, 2}


def test_add_keeps_runs_apart(path: Path) -> None:
    fill(path, range(3))
    with Store(path) as store:
        second = store.open_run({**SETTINGS, "seed": 1}, PLACE, add=True)
        assert second.done() == set()
        second.append(certificate([0.125]), [0], [3], 1.0)
        # With both there, each resumes without being asked to add.
        assert store.open_run(SETTINGS, PLACE).done() == {0, 1, 2}
        assert store.open_run({**SETTINGS, "seed": 1}, PLACE).done() == {0}
        with pytest.raises(InputError, match=r"seed: stored 1, asked 2"):
            store.open_run({**SETTINGS, "seed": 2}, PLACE)
        first, second_read = store.results()
    assert (first.settings["seed"], second_read.settings["seed"]) == (0, 1)
    assert first.certificate.radius.tolist() == RADII[:3]
    assert second_read.certificate.radius.tolist() == [0.125]


def test_every_session_is_on_record(path: Path) -> None:
    fill(path, range(2))
    with Store(path) as store:
        store.open_run(SETTINGS, {"python": "4"}).append(certificate([0.5]), [5], [3], 1.0)
    database = sqlite3.connect(path)
    rows = database.execute(
        "SELECT example, environment FROM certificate JOIN session ON session = session.id ORDER BY example"
    ).fetchall()
    starts = database.execute("SELECT started FROM session").fetchall()
    database.close()
    assert rows == [
        (0, '{"device": "cpu", "python": "3"}'),
        (1, '{"device": "cpu", "python": "3"}'),
        (5, '{"python": "4"}'),
    ]
    assert all(len(s) == 20 and s.endswith("Z") for (s,) in starts)


# --- files that are no store --------------------------------------------------------------------------------------


def cut(fraction: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * fraction))


def overwrite(position: float, content: bytes) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(int(path.stat().st_size * position))
            file.write(content)

    return apply


def no_store(path: Path) -> None:
    """A good SQLite file with somebody else's table."""
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipe (name TEXT)")
    database.close()


def pragma(text: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        database = sqlite3.connect(path)
        database.execute(f"PRAGMA {text}")
        database.close()

    return apply


def acting(path: Path) -> None:
    """A trigger acts on its own when a row is written, whatever this library meant to write."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TRIGGER raise_radii AFTER INSERT ON certificate BEGIN UPDATE certificate SET radius = 9; END"
    )
    database.close()


DAMAGED = r"^the store .*store\.sqlite is damaged \(.+\); nothing was written to it\. Restore a copy, or certify again"


@pytest.mark.parametrize("create", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut(0.5), DAMAGED),
        (cut(0.9), DAMAGED),
        (cut(0.001), DAMAGED),
        (overwrite(0.0, b"rubbish" * 100), DAMAGED),
        (overwrite(0.3, b"\xff" * 20_000), DAMAGED),
        (lambda path: path.write_bytes(b"idx\tlabel\n"), DAMAGED),
        (lambda path: path.write_bytes(os.urandom(10_000)), DAMAGED),
        (no_store, r"store\.sqlite is an SQLite file, but not a certificate store$"),
        (pragma("application_id = 7"), r"store\.sqlite is an SQLite file, but not a certificate store$"),
        (pragma("user_version = 4"), r"store\.sqlite: need a schema from 1 to 3; got 4$"),
        (pragma("user_version = 0"), r"store\.sqlite: need a schema from 1 to 3; got 0$"),
        (acting, r"store\.sqlite: need tables alone, as this library writes them; got 'raise_radii'$"),
    ],
    ids=[
        "half",
        "tail lost",
        "header alone",
        "header",
        "pages",
        "text",
        "noise",
        "other",
        "application",
        "later",
        "none",
        "trigger",
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_alone(
    path: Path, create: bool, harm: Callable[[Path], None], message: str
) -> None:
    with Store(path, create=True) as store:
        run = store.open_run(SETTINGS, PLACE)
        run.append(certificate(RADII[:6] * 100), range(600), [3] * 600, 1.0)  # some twenty pages
    harm(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        Store(path, create=create)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no journal is left behind"


def test_a_missing_store(path: Path) -> None:
    with pytest.raises(InputError, match=r"^need an existing store; no file at .*store\.sqlite$"):
        Store(path)
    assert not path.parent.exists()


def test_an_empty_file_is_a_store_only_where_one_may_be_made(path: Path) -> None:
    """It is what a kill leaves before the first transaction."""
    path.parent.mkdir()
    path.touch()
    with pytest.raises(InputError, match=r"is an SQLite file, but not a certificate store$"):
        Store(path)
    with Store(path, create=True) as store:
        assert store.results() == []


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^cannot use the store .*: unable to open database file; need a file, in a folder"
    ):
        Store(tmp_path)


def test_damage_behind_an_open_store_is_reported(path: Path) -> None:
    fill(path)
    with Store(path) as store:
        overwrite(0.0, bytes(path.stat().st_size))(path)
        with pytest.raises(InputError, match=r"^(the store .* is damaged|cannot use the store)"):
            store.results()
        with pytest.raises(InputError, match=r"^(the store .* is damaged|cannot use the store)"):
            store.published()


def test_a_writer_elsewhere_is_waited_for(path: Path) -> None:
    """Another process holds the file for a moment, as a second campaign with --add would."""
    fill(path)
    holder = (
        "import sqlite3, sys, time; d = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "d.execute('BEGIN EXCLUSIVE'); print('held', flush=True); time.sleep(0.3); d.execute('ROLLBACK')"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with Store(path) as store:
            store.open_run(SETTINGS, PLACE).append(certificate([0.5]), [100], [3], 1.0)
    assert only(path).example.tolist() == [*range(7), 100]


# --- published logs beside the runs -------------------------------------------------------------------------------


def test_published_rows_stay_apart_from_certificates(path: Path) -> None:
    fill(path)
    log = Published.of("paper", [(9, 1, 1, 0.953, True, 0.3), (4, 2, ABSTAIN, 0.0, False, 15.4)])
    with Store(path) as store:
        store.add_log(log)
        (back,) = store.published()
        (results,) = store.results()
    assert type(back) is Published
    assert not isinstance(back, Certificate)
    assert type(results.certificate) is Certificate
    assert results.example.tolist() == list(range(7)), "no published row became a certificate"
    assert back.name == "paper"
    assert back.example.tolist() == [4, 9]
    assert back.label.tolist() == [2, 1]
    assert back.prediction.tolist() == [-1, 1]
    assert back.radius.tolist() == [0.0, 0.953]
    assert back.correct.tolist() == [False, True]
    assert back.seconds.tolist() == [15.4, 0.3]
    assert back.scores().tolist() == [-np.inf, 0.953]


def test_a_log_of_the_same_name_is_refused(path: Path) -> None:
    log = Published.of("paper", [(9, 1, 1, 0.953, True, 0.3)])
    with Store(path, create=True) as store:
        store.add_log(log)
        with pytest.raises(InputError, match=r"store\.sqlite already holds a log named 'paper'$"):
            store.add_log(log)
        store.add_log(Published.of("other", [(9, 1, 1, 0.953, True, 0.3)]))
        assert [p.name for p in store.published()] == ["paper", "other"]


# --- what attacks found ----------------------------------------------------------------------------------------------

LADDER = {"model": "nets:small", "attacks": ["FGSM()", "PGD()"], "seed": 0}


def attack_rows(examples: Sequence[int] = (4, 9, 2)) -> AttackRows:
    """One broken by the second attack, one unbroken, one misclassified as it is."""
    return AttackRows(
        example=np.array(examples),
        label=np.array([1, 2, 3]),
        prediction=np.array([1, 2, 0]),
        distance=np.array([0.1 + 0.2, np.inf, 0.0]),
        broken_by=np.array([1, -1, -1]),
        forwards=np.array([[1, 2**40], [1, 7], [0, 0]]),
        backwards=np.array([[1, 5], [1, 6], [0, 0]]),
        seconds=np.array([0.5, 0.5, 0.5]),
    )


def test_what_attacks_found_comes_back_bit_for_bit(path: Path) -> None:
    with Store(path, create=True) as store:
        assert attack_results(store) == []
        run = open_attack_run(store, LADDER, PLACE)
        assert attack_results(store) == [], "a run without rows is no result"
        with pytest.raises(InputError, match=r"^the run in .*store\.sqlite holds no row yet"):
            run.results()
        run.append(attack_rows())
        assert run.done() == {2, 4, 9}
        (read,) = attack_results(store)
        again = run.results()
        assert store.results() == [], "no such row is a certificate"
    rows = read.rows
    assert rows.example.tolist() == again.rows.example.tolist() == [2, 4, 9]
    assert rows.distance.tolist() == [0.0, 0.1 + 0.2, np.inf]
    assert rows.broken_by.tolist() == [-1, 1, -1]
    assert (rows.label.tolist(), rows.prediction.tolist()) == ([3, 1, 2], [0, 1, 2])
    assert rows.forwards.tolist() == [[0, 0], [1, 2**40], [1, 7]]
    assert rows.backwards.tolist() == [[0, 0], [1, 5], [1, 6]]
    assert rows.seconds.tolist() == [0.5] * 3
    assert (rows.correct.tolist(), rows.robust.tolist()) == ([False, True, True], [False, False, True])
    assert dict(read.settings) == LADDER
    assert read.name == "small under attack"


def test_a_row_of_an_attack_that_is_there_stays(path: Path) -> None:
    with Store(path, create=True) as store:
        run = open_attack_run(store, LADDER, PLACE)
        run.append(attack_rows())
        run.append(attack_rows([4, 8, 9]))
        rows = run.results().rows
    assert rows.example.tolist() == [2, 4, 8, 9]
    assert rows.label.tolist() == [3, 1, 2, 2], "example 9 keeps its first row"


def test_each_kind_of_run_has_its_own_settings(path: Path) -> None:
    fill(path)
    with Store(path) as store:
        open_attack_run(store, LADDER, PLACE).append(attack_rows())
        with pytest.raises(InputError, match=r"holds a run with other settings \(seed: stored 0, asked 1\)"):
            open_attack_run(store, {**LADDER, "seed": 1}, PLACE)
        open_attack_run(store, {**LADDER, "seed": 1}, PLACE, add=True).append(attack_rows())
        assert open_attack_run(store, LADDER, PLACE).done() == {2, 4, 9}
        assert store.open_run(SETTINGS, PLACE).done() == set(range(7))
        with pytest.raises(InputError, match=r"holds a run with other settings .*seed: stored 0, asked 2"):
            store.open_run({**SETTINGS, "seed": 2}, PLACE)
        assert [r.settings["seed"] for r in attack_results(store)] == [0, 1]
        assert len(store.results()) == 1


def test_settings_of_a_run_of_the_other_kind_are_refused(path: Path) -> None:
    """The file would hold both under one name; it is not damaged."""
    fill(path)
    message = r"store\.sqlite already holds a run of kind 'certificate' with exactly these settings; need settings that"
    with Store(path) as store:
        for add in (False, True):
            with pytest.raises(InputError, match=message):
                open_attack_run(store, SETTINGS, PLACE, add=add)
        open_attack_run(store, LADDER, PLACE).append(attack_rows())
        with pytest.raises(InputError, match=r"holds a run of kind 'attack' with exactly these settings"):
            store.open_run(LADDER, PLACE, add=True)
        assert (len(store.results()), len(attack_results(store))) == (1, 1)


# --- what a session ran on ------------------------------------------------------------------------------------------


def test_the_environment_names_the_packages_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto_LiRPA's version where it is installed, without an import of it."""
    versions = {"auto-LiRPA": "0.3", "numpy": "3", "scipy": "4", "robust-radius": "5"}

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(runner, "version", version)
    found = runner.environment(torch.device("cpu"))
    assert {k: v for k, v in found.items() if k in versions} == versions
    assert found["torch"] == torch.__version__  # the build too, which metadata may not name
    del versions["auto-LiRPA"]
    assert "auto-LiRPA" not in runner.environment(torch.device("cpu"))
    del versions["scipy"]
    with pytest.raises(PackageNotFoundError):  # what must be there is not left out in silence
        runner.environment(torch.device("cpu"))


# --- files of the first schema ---------------------------------------------------------------------------------------

# As the first version of this library wrote it.
FIRST_SCHEMA = """
CREATE TABLE run (id INTEGER PRIMARY KEY, settings TEXT NOT NULL UNIQUE, header TEXT);
CREATE TABLE session (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES run, started TEXT NOT NULL, environment TEXT NOT NULL
);
CREATE TABLE certificate (
    run INTEGER NOT NULL REFERENCES run, example INTEGER NOT NULL, label INTEGER NOT NULL, prediction INTEGER NOT NULL,
    radius REAL NOT NULL, samples INTEGER NOT NULL, counts TEXT, w REAL, seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES session, PRIMARY KEY (run, example)
) WITHOUT ROWID;
CREATE TABLE log (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE published (
    log INTEGER NOT NULL REFERENCES log, example INTEGER NOT NULL, label INTEGER NOT NULL, prediction INTEGER NOT NULL,
    radius REAL NOT NULL, correct INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (log, example)
) WITHOUT ROWID;
PRAGMA application_id = 1381130596;
PRAGMA user_version = 1;
"""


@pytest.fixture
def first(path: Path) -> Path:
    """A file of schema 1 with a run of two certificates and a published row."""
    path.parent.mkdir()
    header = '{"alpha": 0.001, "arithmetic": "a", "method": "M()", "norm": "L2", "region": "ball", "subject": "g"}'
    database = sqlite3.connect(path)
    database.executescript(FIRST_SCHEMA)
    database.execute("INSERT INTO run VALUES (1, ?, ?)", (json.dumps(SETTINGS, sort_keys=True), header))
    database.execute("INSERT INTO session VALUES (1, 1, '2026-01-01T00:00:00Z', '{}')")
    for example, radius in ((3, 0.1 + 0.2), (5, 0.5)):
        row = (1, example, 7, 7, radius, 110, "[1, 109]", None, 0.25, 1)
        database.execute(f"INSERT INTO certificate VALUES ({', '.join('?' * 10)})", row)
    database.execute("INSERT INTO log VALUES (1, 'paper')")
    database.execute("INSERT INTO published VALUES (1, 9, 1, 1, 0.953, 1, 0.3)")
    database.commit()
    database.close()
    return path


def version(path: Path) -> int:
    database = sqlite3.connect(path)
    (number,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return number


@pytest.mark.parametrize("create", [False, True])
def test_reading_a_file_of_the_first_schema_leaves_it_as_it_is(first: Path, create: bool) -> None:
    before = first.read_bytes()
    with Store(first, create=create) as store:
        (results,), (log,) = store.results(), store.published()
        assert attack_results(store) == []
    assert results.certificate.radius.tolist() == [0.1 + 0.2, 0.5]
    assert dict(results.settings) == SETTINGS
    assert log.radius.tolist() == [0.953]
    assert first.read_bytes() == before
    assert version(first) == 1


def append_certificate(store: Store) -> None:
    made = certificate([0.25], counts=False)
    header = {"arithmetic": "a", "subject": "g", "method": "M()"}
    same = Certificate(**{f: getattr(made, f) for f in made.__slots__} | header)
    store.open_run(SETTINGS, PLACE).append(same, [8], [3], 1.0)


def append_attack(store: Store) -> None:
    open_attack_run(store, LADDER, PLACE).append(attack_rows())


def append_log(store: Store) -> None:
    store.add_log(Published.of("other", [(9, 1, 1, 0.953, True, 0.3)]))


@pytest.mark.parametrize("write", [append_certificate, append_attack, append_log])
def test_writing_to_a_file_of_the_first_schema_brings_it_up_to_date(
    first: Path, write: Callable[[Store], None]
) -> None:
    with Store(first) as store:
        write(store)
    assert version(first) == 3
    with Store(first) as store:
        (results,) = store.results()
        assert results.certificate.radius.tolist()[:2] == [0.1 + 0.2, 0.5]
        assert results.example.tolist() == ([3, 5, 8] if write is append_certificate else [3, 5])
        assert len(attack_results(store)) == (write is append_attack)
        assert len(store.published()) == 1 + (write is append_log)
        append_attack(store)
        assert len(attack_results(store)) == 1


def test_an_upgraded_file_has_the_tables_of_a_new_one(first: Path) -> None:
    def columns(path: Path) -> dict[str, list[tuple[Any, ...]]]:
        database = sqlite3.connect(path)
        tables = [t for (t,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {t: database.execute(f"PRAGMA table_info({t})").fetchall() for t in sorted(tables)}
        database.close()
        return found

    with Store(first) as store:
        append_attack(store)
    new = first.with_name("new.sqlite")
    fill(new)
    assert columns(first) == columns(new)


def test_a_write_that_is_refused_upgrades_nothing(first: Path) -> None:
    before = first.read_bytes()
    with Store(first) as store, pytest.raises(InputError, match=r"seed: stored 0, asked 1"):
        store.open_run({**SETTINGS, "seed": 1}, PLACE)
    assert version(first) == 1
    with Store(first) as store:
        (results,) = store.results()
    assert results.example.tolist() == [3, 5]
    assert first.read_bytes() == before
