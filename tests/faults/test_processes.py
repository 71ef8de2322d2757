"""Campaigns that are killed, run out of room, may not write, or meet another: nothing is lost and nothing doubled."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stores import Row, count, held
from tests.faults.zygote import BATCH, EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
Ask = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, limits of files and capabilities of Linux")


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    command = [sys.executable, "-m", "tests.faults.zygote"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers, requests = process.stdout, process.stdin

        def request(store: Path, **options: Any) -> list[dict[str, Any]]:
            requests.write(json.dumps({"store": str(store), **options}) + "\n")
            requests.flush()
            return json.loads(answers.readline())

        yield request
        requests.close()


@pytest.fixture(scope="module")
def undisturbed(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Row], float, Path]:
    """The rows of a campaign that nothing befell, how long it took, and its store."""
    path = tmp_path_factory.mktemp("undisturbed") / "store.sqlite"
    (end,) = ask(path)
    assert end["said"] == f"{EXAMPLES} rows"
    return held(path), end["seconds"], path


def complete(ask: Ask, path: Path, whole: dict[int, Row]) -> None:
    """Run the campaign to its end, which is the table that it would have had anyway."""
    (end,) = ask(path)
    assert end["said"] == f"{EXAMPLES} rows"
    assert held(path) == whole
    assert count(path) == EXAMPLES


# --- kill -9 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [pytest.param(3, id="short"), pytest.param(50, id="long", marks=pytest.mark.long)])
def test_kills_at_moments_that_nobody_chose(
    ask: Ask, undisturbed: tuple[dict[int, Row], float, Path], tmp_path: Path, kills: int
) -> None:
    """The process that certifies is the one that writes: it dies while voting, writing, committing or starting."""
    whole, seconds, _ = undisturbed
    moments, in_between = random.Random(kills), 0
    for number in range(kills):
        path = tmp_path / f"{number}.sqlite"
        (end,) = ask(path, kill_after=moments.random() * seconds)
        left = held(path)
        assert left.items() <= whole.items()
        assert len(left) % BATCH == 0, "a batch is there whole or not at all"
        assert end["signal"] == 9 or len(left) == EXAMPLES
        in_between += 0 < len(left) < EXAMPLES
        complete(ask, path, whole)
    assert in_between > 0, "or no kill came while the campaign was writing"


# --- no room -------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_grow(ask: Ask, undisturbed: tuple[dict[int, Row], float, Path], tmp_path: Path) -> None:
    whole, _, finished = undisturbed
    path = tmp_path / "store.sqlite"
    (end,) = ask(path, largest_file=finished.stat().st_size - 10_000)
    assert end["said"].startswith(f"InputError: cannot use the store {path}: disk I/O error; rows committed before are")
    left = held(path)
    assert 0 < len(left) < EXAMPLES
    assert left.items() <= whole.items()
    assert len(left) % BATCH == 0
    complete(ask, path, whole)


def test_no_room_for_the_first_page(ask: Ask, undisturbed: tuple[dict[int, Row], float, Path], tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    (end,) = ask(path, largest_file=100)
    assert end["said"].startswith(f"InputError: cannot use the store {path}: disk I/O error")
    assert held(path) == {}
    complete(ask, path, undisturbed[0])


# --- no leave ------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Path]:
    """A folder that is writable again when the test ends."""
    folder = tmp_path / "guarded"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def test_a_store_that_may_not_be_written_to(
    ask: Ask, undisturbed: tuple[dict[int, Row], float, Path], guarded: Path
) -> None:
    path = guarded / "store.sqlite"
    path.write_bytes(undisturbed[2].read_bytes())
    before = path.read_bytes()
    problem = "attempt to write a readonly database; need leave to write to the file and to its folder"
    for file, folder in ((0o444, 0o755), (0o444, 0o555), (0o644, 0o555)):
        path.chmod(file)
        guarded.chmod(folder)
        (end,) = ask(path, unprivileged=True)
        assert end["said"] == f"InputError: cannot use the store {path}: {problem}"
        (end,) = ask(path, unprivileged=True, read=True)
        assert end["said"] == f"{EXAMPLES} rows", "to read it no leave to write is needed"
    path.chmod(0o000)
    (end,) = ask(path, unprivileged=True, read=True)
    assert end["said"].startswith(f"InputError: cannot use the store {path}: unable to open database file")
    path.chmod(0o644)
    assert path.read_bytes() == before


def test_a_folder_that_may_not_be_written_to(ask: Ask, guarded: Path) -> None:
    guarded.chmod(0o555)
    for path, problem in (
        (guarded / "store.sqlite", "unable to open database file; need a file, in a folder that can be written to"),
        (guarded / "new" / "store.sqlite", f"[Errno 13] Permission denied: '{guarded / 'new'}'"),
    ):
        (end,) = ask(path, unprivileged=True)
        assert end["said"] == f"InputError: cannot use the store {path}: {problem}"
    assert list(guarded.iterdir()) == []


# --- two at once ---------------------------------------------------------------------------------------------------


def test_two_campaigns_on_one_store(ask: Ask, undisturbed: tuple[dict[int, Row], float, Path], tmp_path: Path) -> None:
    """Both begin with nothing done, so both compute every row: one waits while the other writes."""
    path = tmp_path / "store.sqlite"
    ends = ask(path, processes=2)
    assert [end["said"] for end in ends] == [f"{EXAMPLES} rows"] * 2
    assert held(path) == undisturbed[0]
    assert count(path) == EXAMPLES
