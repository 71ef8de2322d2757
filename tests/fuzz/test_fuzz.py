"""Files of the corpus, changed a little: a reader reads them or raises InputError, and nothing else comes out."""

import random
import time
import traceback
import warnings
from pathlib import Path

import pytest

from certify import InputError
from tests.fuzz.mutate import CHANGES, mutate
from tests.fuzz.targets import CORPUS, TARGETS, Reader

SHORT_TRIALS = 60
LONG_SECONDS = 3600.0
"""For all targets together."""
SEED = 20_260_101


def files(folder: str) -> list[Path]:
    return sorted((CORPUS / folder).iterdir())


def outcome(read: Reader, path: Path) -> str:
    """What a reader did with a file: "read", "refused", or the traceback of what else came out."""
    try:
        with warnings.catch_warnings():
            # torch's own remark on the first bytes of a pickle.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            read(path)
    except InputError:
        return "refused"
    except Exception:
        return traceback.format_exc()
    return "read"


def fuzz(name: str, scratch: Path, trials: int, seconds: float) -> dict[str, int]:
    """Change files and read them until the trials or the time are used up; the first surprise ends it."""
    read, folder = TARGETS[name]
    originals = [path.read_bytes() for path in files(folder)]
    seen, until = {"read": 0, "refused": 0}, time.monotonic() + seconds
    trial = 0
    while trial < trials and time.monotonic() < until:
        draw = random.Random(f"{SEED} {name} {trial}")
        content = mutate(draw.choice(originals), draw)
        path = scratch / "changed"
        path.write_bytes(content)
        what = outcome(read, path)
        if what not in seen:
            kept = scratch / f"{name}-{trial}"
            kept.write_bytes(content)
            pytest.fail(f"{name}, trial {trial}, kept as {kept}:\n{what}")
        seen[what] += 1
        trial += 1
    return seen


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_input_errors_comes_out(name: str, tmp_path: Path) -> None:
    seen = fuzz(name, tmp_path, SHORT_TRIALS, 60.0)
    assert seen["refused"] > 0


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_input_errors_comes_out_in_an_hour(name: str, tmp_path: Path) -> None:
    seen = fuzz(name, tmp_path, 10**9, LONG_SECONDS / len(TARGETS))
    assert seen["refused"] > 0


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    """Else the fuzzer would only try what is refused at the first look."""
    read, folder = TARGETS[name]
    what = []
    for original in files(folder):
        path = tmp_path / original.name
        path.write_bytes(original.read_bytes())
        what.append(outcome(read, path))
    assert "read" in what
    assert set(what) <= {"read", "refused"}


def test_the_fuzzer_sees_a_reader_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that trusts its file falls to the first few changes, and the file is kept."""

    def trusting(path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            float(line.split("\t")[3])

    monkeypatch.setitem(TARGETS, "trusting", (trusting, "logs"))
    with pytest.raises(pytest.fail.Exception, match=r"trusting, trial \d+, kept as .*\n(?s:.*)Error"):
        fuzz("trusting", tmp_path, 100, 60.0)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("trusting-")]


def test_changes_follow_from_the_seed_and_every_kind_occurs() -> None:
    original = bytes(range(256)) * 4
    first, again = ([mutate(original, random.Random(seed)) for seed in range(300)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 290
    lengths = {(len(m) > len(original)) - (len(m) < len(original)) for m in first}
    assert lengths == {-1, 0, 1}
    for change in CHANGES:
        data = bytearray(original)
        for seed in range(5):
            change(data, random.Random(seed))
        assert bytes(data) != original
    assert mutate(b"", random.Random(0)) == b""
