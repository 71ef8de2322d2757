"""What can befall a store in one process: no room, a file held by another, clocks that jump, bytes that change."""

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from certify import Certificate, Gaussian, InputError, PerExample, Smoothing
from certify.__main__ import app
from certify.campaign import Results, Store, run, store
from certify.campaign.attack_rows import attack_results
from certify.campaign.salvage import Salvaged, salvage
from paper_repro.data import digits
from tests.faults.stores import Row, count, held, overwrite, reseal, rows
from tests.faults.zygote import METHOD, NAMES, network
from tests.fuzz.targets import CORPUS

SETTINGS = {"model": "nets:small", "data": "digits test", "seed": 0}
OTHER = {**SETTINGS, "seed": 1}


def certificate(n: int, first: int = 0) -> Certificate:
    """Radii and votes that differ from row to row."""
    number = torch.arange(first, first + n)
    return Certificate(
        prediction=number % 10,
        radius=(number.double() + 1) / 7,
        norm="L2",
        subject="g(Gaussian(sigma=0.5))",
        guarantee=PerExample(0.001),
        method=Smoothing(Gaussian(0.5)),
        samples=torch.full((n,), 100_100),
        counts=torch.stack([number, 100_000 - number, torch.zeros_like(number)], dim=1),
    )


def fill(path: Path, n: int = 300, settings: dict[str, object] | None = None) -> dict[int, Row]:
    with Store(path, create=True) as file:
        run = file.open_run(settings or SETTINGS, {}, add=True)
        run.append(certificate(n), range(n), [3] * n, seconds=1.0)
        return rows(file.results()[-1])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


# --- no room, in one process ---------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_committed_and_the_store_usable(path: Path) -> None:
    with Store(path, create=True) as file:
        run = file.open_run(SETTINGS, {})
        run.append(certificate(100), range(100), [3] * 100, seconds=1.0)
        (pages,) = file._db.execute("PRAGMA page_count").fetchone()
        file._db.execute(f"PRAGMA max_page_count = {pages}")
        full = (
            r"^cannot use the store .*store\.sqlite: database or disk is full; rows committed before are kept, and the"
        )
        with pytest.raises(InputError, match=full):
            run.append(certificate(400, 100), range(100, 500), [3] * 400, seconds=1.0)
        assert run.done() == set(range(100))
        file._db.execute(f"PRAGMA max_page_count = {pages + 100}")
        run.append(certificate(400, 100), range(100, 500), [3] * 400, seconds=1.0)
        (results,) = file.results()
    assert results.certificate.radius.tolist() == certificate(500).radius.tolist()


# --- held by another -----------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.05)


HELD = r"^cannot use the store .*store\.sqlite: database is locked; another process is using it, and did not let go of"


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_does_not_end_is_named(path: Path) -> None:
    whole = fill(path)
    with Store(path) as file, closing(sqlite3.connect(path, isolation_level=None)) as other:
        run = file.open_run(SETTINGS, {})
        other.execute("BEGIN EXCLUSIVE")
        for use in (
            lambda: Store(path),
            lambda: Store(path, create=True),
            lambda: file.open_run(SETTINGS, {}),
            lambda: run.append(certificate(1), [999], [3], seconds=1.0),
            run.done,
            file.results,
            file.published,
        ):
            with pytest.raises(InputError, match=HELD):
                use()
        other.execute("ROLLBACK")
        run.append(certificate(1, 999), [999], [3], seconds=1.0)
    assert held(path).items() > whole.items()
    assert count(path) == 301


@pytest.mark.usefixtures("impatient")
def test_a_commit_that_fails_leaves_nothing_open(path: Path) -> None:
    """A reader elsewhere lets a writer begin, and not end."""
    fill(path)
    with Store(path) as file, closing(sqlite3.connect(path, isolation_level=None)) as other:
        run = file.open_run(SETTINGS, {})
        other.execute("BEGIN")
        other.execute("SELECT * FROM certificate").fetchone()
        with pytest.raises(InputError, match=HELD):
            run.append(certificate(1), [999], [3], seconds=1.0)
        other.execute("ROLLBACK")
        assert run.done() == set(range(300))
        run.append(certificate(1), [999], [3], seconds=1.0)
    assert count(path) == 301


# --- clocks --------------------------------------------------------------------------------------------------------


def jumping(by: float) -> Iterator[float]:
    """A clock that at every look is so much later than before, after one hour forwards and two days back."""
    now, looks = 1e9, 0
    while True:
        now += by + (3600 if looks % 7 == 3 else -172_800 if looks % 7 == 5 else 0)
        looks += 1
        yield now


@pytest.mark.parametrize("by", [-10.0, 0.0, 0.01])
def test_clocks_that_jump_break_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: float
) -> None:
    clock, wall = jumping(by), jumping(-by)
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(clock))
        patch.setattr(time, "time", lambda: next(wall))
        results: Results = run(path, METHOD, network(), digits("test"), names=NAMES, indices=":24", seed=7, batch=2)
    assert len(results.example) == 24
    assert (results.seconds >= 0).all()
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    left = [line.split(" s left")[0].rsplit(" ", 1)[-1] for line in told if " s left" in line]
    assert len(told) == 10
    assert all(float(seconds) >= 0 for seconds in left)


@pytest.mark.parametrize("seconds", [-1.0, -1e300, float("-inf"), float("nan")])
def test_a_duration_is_never_negative(path: Path, seconds: float) -> None:
    with Store(path, create=True) as file:
        file.open_run(SETTINGS, {}).append(certificate(2), [0, 1], [3, 3], seconds)
        (results,) = file.results()
    assert results.seconds.tolist() == [0.0, 0.0]


def test_no_negative_zero_breaks_a_digest(path: Path) -> None:
    """SQLite keeps it as zero, so a digest of what was given would not be that of what is there."""
    made = certificate(2)
    zero = Certificate(**{f: getattr(made, f) for f in made.__slots__} | {"radius": -torch.zeros(2).double()})
    with Store(path, create=True) as file:
        file.open_run(SETTINGS, {}).append(zero, [0, 1], [3, 3], -0.0)
        (results,) = file.results()
    assert results.certificate.radius.tolist() == [0.0, 0.0]


# --- bytes that change ---------------------------------------------------------------------------------------------

DAMAGED = r"^the store .*store\.sqlite is damaged \({}\); nothing was written to it\. Restore a copy, or .*salvage"


def test_a_raised_radius_is_found_where_the_database_is_in_order(path: Path) -> None:
    """As one bit in a page does it: the least of changes, and the worst."""
    fill(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE certificate SET radius = radius * 2 WHERE example = 17")
    with Store(path) as file, pytest.raises(InputError, match=DAMAGED.format("example 17 of run 1 is not as it was.*")):
        file.results()
    reseal(path)
    assert held(path)[17][2] == 2 * 18 / 7, "a digest is no signature"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE certificate SET label = 4 WHERE example = 17",
        "UPDATE certificate SET prediction = 8 WHERE example = 17",
        "UPDATE certificate SET samples = 7 WHERE example = 17",
        "UPDATE certificate SET counts = '[0, 100000, 0]' WHERE example = 17",
        "UPDATE certificate SET counts = NULL WHERE example = 17",
        "UPDATE certificate SET w = 0.5 WHERE example = 17",
        "UPDATE certificate SET seconds = 0 WHERE example = 17",
        "UPDATE certificate SET example = 999 WHERE example = 17",
        "UPDATE certificate SET digest = NULL WHERE example = 17",
        "UPDATE certificate SET digest = (SELECT digest FROM certificate WHERE example = 18) WHERE example = 17",
        "UPDATE run SET settings = replace(settings, '\"seed\": 0', '\"seed\": 9')",
        "UPDATE run SET header = replace(header, '0.001', '0.0001')",
        "UPDATE run SET header = replace(header, 'L2', 'Linf')",
    ],
)
def test_every_cell_counts(path: Path, change: str) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(change).rowcount == 1
    with Store(path) as file, pytest.raises(InputError, match=DAMAGED.format("example .* of run 1 is not as it was.*")):
        file.results()


def test_a_row_counts_in_its_own_run_alone(path: Path) -> None:
    fill(path)
    fill(path, settings=OTHER)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM certificate WHERE run = 2 AND example = 17")
        database.execute("UPDATE certificate SET run = 2 WHERE run = 1 AND example = 17")
    with Store(path) as file, pytest.raises(InputError, match=DAMAGED.format("example 17 of run 2 is not as it was.*")):
        file.results()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE run SET settings = '{'",
        "UPDATE run SET settings = '[1]'",
        "UPDATE run SET header = 'null'",
        'UPDATE run SET header = \'{"norm": "L2"}\'',
        "UPDATE run SET header = replace(header, '0.001', '7')",
        "UPDATE run SET header = printf('%.*c', 100000, '[')",
        "UPDATE certificate SET radius = -1",
        "UPDATE certificate SET radius = 'far'",
        "UPDATE certificate SET prediction = 'nine'",
        "UPDATE certificate SET label = 1e300",
        "UPDATE certificate SET counts = '[1, [2]]'",
        "UPDATE certificate SET counts = '[99999999999999999999999]'",
        "UPDATE certificate SET counts = printf('%.*c', 100000, '[')",
    ],
)
def test_sealed_nonsense_is_damage_too(path: Path, change: str) -> None:
    """Whoever makes digests as well gets one kind of error out of this library, and it names the file."""
    fill(path, 20)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    reseal(path)
    with Store(path) as file, pytest.raises(InputError, match=DAMAGED.format("(?s:.+)")):
        file.results()


def test_nonsense_among_published_rows_is_damage_too(path: Path) -> None:
    for change in (
        "INSERT INTO published VALUES (1, 0, 'one', 1, 0.5, 1, 1.0)",
        "INSERT INTO published VALUES (1, 0, 1e300, 1, 0.5, 1, 1.0)",
        "DELETE FROM published",
    ):
        path.unlink(missing_ok=True)
        fill(path, 1)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("INSERT INTO log VALUES (1, 'paper')")
            database.execute(change)
        with Store(path) as file, pytest.raises(InputError, match=DAMAGED.format(".+")):
            file.published()


@pytest.mark.parametrize(
    "trials", [pytest.param(40, id="short"), pytest.param(3000, id="long", marks=pytest.mark.long)]
)
def test_no_changed_bytes_change_a_certificate(tmp_path: Path, trials: int) -> None:
    """Wherever they are: the table is the one that was written, or the store is refused; and what is whole is saved."""
    original = tmp_path / "original.sqlite"
    whole, draw, refused, saved = fill(original), random.Random(trials), 0, 0
    content = original.read_bytes()
    for trial in range(trials):
        path, out = tmp_path / f"{trial}.sqlite", tmp_path / f"{trial}.saved"
        path.write_bytes(content)
        length = draw.choice((1, 16, 300))
        overwrite(path, draw.randrange(len(content) - length), draw.randbytes(length))
        try:
            with Store(path) as file:
                found = file.results()
        except InputError as error:
            refused += 1
            named = str(path) in str(error)
        else:
            named = True
            assert [rows(f) for f in found] == [whole]
        assert named
        try:
            end = salvage(path, out)
        except InputError:
            assert not out.exists()
        else:
            assert held(out).items() <= whole.items()
            assert len(held(out)) == end.kept
            saved += end.kept
            out.unlink()
        path.unlink()
    assert refused > trials / 4
    assert saved > trials * len(whole) / 4


# --- what is whole is saved ----------------------------------------------------------------------------------------


def pages_of(path: Path, page_size: int = 4096) -> list[int]:
    """Where the leaf pages that hold rows begin, in the file's order."""
    raw = path.read_bytes()
    return [at for at in range(page_size, len(raw), page_size) if raw[at] == 0x0A]


def test_a_lost_page_is_read_up_to_from_both_ends(path: Path, tmp_path: Path) -> None:
    whole = fill(path, 1000)
    leaves = pages_of(path)
    assert len(leaves) > 10
    overwrite(path, leaves[len(leaves) // 2], b"\xff" * 4096)
    with pytest.raises(InputError, match=DAMAGED.format(".+")):
        Store(path)
    before = path.read_bytes()
    out = tmp_path / "saved.sqlite"
    end = salvage(path, out)
    kept = held(out)
    assert end == Salvaged(len(kept), 0, False)
    assert kept.items() < whole.items()
    assert len(kept) > 900, "one page of many is lost"
    assert {0, 999} <= set(kept)
    assert path.read_bytes() == before
    with Store(out) as file:  # the campaign goes on in the new file, for its settings are the same
        missing = sorted(set(whole) - file.open_run(SETTINGS, {}).done())
        assert missing == list(range(missing[0], missing[-1] + 1))
        again = certificate(len(missing), missing[0])
        file.open_run(SETTINGS, {}).append(again, missing, [3] * len(missing), seconds=1.0)
    assert held(out) == whole


def test_a_length_beyond_all_memory_is_damage_too(tmp_path: Path) -> None:
    """Found by the fuzzer: a length of 2^63 - 1 in the schema, and SQLite says that there is no memory."""
    whole = (CORPUS / "stores" / "store.sqlite").read_bytes()
    longest = b"\xff" * 7 + b"\x7f"
    path, found = tmp_path / "store.sqlite", set()
    for at in (796, 2606):
        path.write_bytes(whole[:at] + longest + whole[at + 8 :])
        with closing(sqlite3.connect(path)) as plain:
            try:
                plain.execute("SELECT settings FROM run").fetchall()
            except (sqlite3.DatabaseError, MemoryError) as error:
                found.add(type(error))
        with pytest.raises(InputError, match="damaged"), Store(path) as file:
            file.results()
        with pytest.raises(InputError, match="nothing can be read from"):
            salvage(path, tmp_path / f"saved-{at}.sqlite")
    assert MemoryError in found


def test_salvage_on_the_command_line(path: Path, tmp_path: Path) -> None:
    fill(path)
    result = CliRunner().invoke(app, ["salvage", str(path), str(tmp_path / "saved.sqlite")])
    assert (result.exit_code, result.stderr) == (0, f"300 rows kept, 0 refused, in {tmp_path / 'saved.sqlite'}\n")


def test_a_whole_store_is_saved_whole(path: Path, tmp_path: Path) -> None:
    first, second = fill(path), fill(path, 50, OTHER)
    out = tmp_path / "saved.sqlite"
    assert salvage(path, out) == Salvaged(350, 0, True)
    with Store(path) as file, Store(out) as saved:
        before, after = file.results(), saved.results()
        assert attack_results(saved) == []
    assert [rows(r) for r in after] == [rows(r) for r in before] == [first, second]
    assert [dict(r.settings) for r in after] == [SETTINGS, OTHER]
    assert [r.seconds.tolist() for r in after] == [r.seconds.tolist() for r in before]
    with closing(sqlite3.connect(out)) as database:
        assert (
            database.execute("SELECT environment FROM session").fetchall()
            == [('{"salvaged_from": "store.sqlite"}',)] * 2
        )


def test_changed_rows_are_left_behind_and_counted(path: Path, tmp_path: Path) -> None:
    whole = fill(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE certificate SET radius = radius * 2 WHERE example IN (17, 18)")
        database.execute("UPDATE certificate SET counts = CAST(x'ff' AS TEXT) WHERE example = 19")
    out = tmp_path / "saved.sqlite"
    assert salvage(path, out) == Salvaged(297, 3, True)
    assert held(out) == {e: row for e, row in whole.items() if e not in (17, 18, 19)}


def test_a_run_of_other_settings_than_its_rows_were_written_for_is_not_saved(path: Path, tmp_path: Path) -> None:
    fill(path)
    second = fill(path, 50, OTHER)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE run SET settings = replace(settings, 'small', 'large') WHERE id = 1")
    out = tmp_path / "saved.sqlite"
    assert salvage(path, out) == Salvaged(50, 300, True)
    with Store(out) as saved:
        assert [rows(r) for r in saved.results()] == [second]


def test_what_cannot_be_saved(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved.sqlite"
    with pytest.raises(InputError, match=r"^need an existing store; no file at .*store\.sqlite$"):
        salvage(path, out)
    path.write_bytes(os.urandom(10_000))
    with pytest.raises(InputError, match=r"^nothing can be read from .*store\.sqlite: file is not a database$"):
        salvage(path, out)
    path.unlink()
    Store(path, create=True).__exit__(None, None, None)
    with pytest.raises(InputError, match=r"^nothing can be read from .*: no run of certificates is found in it$"):
        salvage(path, out)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(InputError, match=r"^need rows with digests, which stores have from schema 3 on; .* has none$"):
        salvage(path, out)
    assert not out.exists()
    with pytest.raises(InputError, match=r"^need a new file for what is whole; .*store\.sqlite exists$"):
        salvage(path, path)


# --- names ---------------------------------------------------------------------------------------------------------

UGLY = """'; DROP TABLE certificate; -- " ` ?1 :x %00 \\ \U0001f600 \t"""


def test_names_with_quotes_and_semicolons_are_names(tmp_path: Path) -> None:
    path = tmp_path / "'; DROP TABLE run; -- \" ?x=1#%41.sqlite"
    settings = {**SETTINGS, "model": UGLY, UGLY: UGLY}
    whole = fill(path, 5, settings)
    with Store(path) as file:
        log = store.Published.of(UGLY, [(9, 1, 1, 0.5, True, 0.3)])
        file.add_log(log)
        with pytest.raises(InputError, match="already holds a log named"):
            file.add_log(log)
        assert [p.name for p in file.published()] == [UGLY]
        assert file.open_run(settings, {UGLY: UGLY}).done() == set(range(5))
        assert dict(file.results()[0].settings) == settings
    out = tmp_path / "saved ?mode=memory&'.sqlite"
    assert salvage(path, out) == Salvaged(5, 0, True)
    assert held(out) == whole
    assert {p.name for p in tmp_path.iterdir()} == {path.name, out.name}


@pytest.mark.parametrize("name", ["file:store?mode=memory", "file::memory:", "store?mode=ro"])
def test_no_name_of_a_file_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A store in memory would be lost with the process: it is one only under the plain name :memory:."""
    monkeypatch.chdir(tmp_path)
    whole = fill(Path(name), 5)
    assert held(tmp_path / name) == whole


def test_a_model_of_a_store_is_a_name_and_nothing_is_imported(path: Path) -> None:
    fill(path, 5, {**SETTINGS, "model": "this.would.not:import"})
    with Store(path) as file:
        assert file.results()[0].name.startswith("import g(")
