"""A split of a data set, and the digest check that every loader ends with."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from certify import InputError

Split = Literal["train", "test"]
ByteArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

DATA_DIRECTORY = "ROBUST_RADIUS_DATA"
"""The environment variable that names a folder with one subfolder per data set."""


class Unavailable(Exception):
    """A source does not have the data; the next one is tried. The text says what was looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Examples.

    Attributes:
        x: (n, channels, height, width) float32 in [0, 1].
        y: (n,) int64 labels.
        id: (n,) int64 positions in the official order of the split.
    """

    x: Tensor
    y: Tensor
    id: Tensor

    def __len__(self) -> int:
        return len(self.y)


def check_split(split: str) -> None:
    """Refuse a split other than train and test.

    Raises:
        InputError: the rule is broken.
    """
    if split not in ("train", "test"):
        raise InputError(f'need split "train" or "test"; got {split!r}')


def array_digest(array: ByteArray) -> str:
    """SHA-256 of a uint8 array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def verify(array: ByteArray, shape: tuple[int, ...], sha256: str, origin: str) -> ByteArray:
    """The array itself, if it is the one expected.

    Raises:
        InputError: shape, type or digest differ; the message names the origin, what was expected and what to do.
    """
    advice = f"remove or replace it, or point {DATA_DIRECTORY} at a folder with the official files"
    if array.shape != shape or array.dtype != np.uint8:
        raise InputError(f"{origin}: need uint8 {shape}; got {array.dtype} {array.shape}; {advice}")
    if array_digest(array) != sha256:
        raise InputError(f"{origin}: need sha256 {sha256} of the decoded array; got {array_digest(array)}; {advice}")
    return array


def data_directory() -> Path | None:
    """The folder that the environment names, if any."""
    named = os.environ.get(DATA_DIRECTORY)
    return Path(named) if named else None


def first_available(what: str, sources: list[Callable[[], ByteArray]]) -> ByteArray:
    """The array from the first source that has it. A source that has a wrong one ends the search with its error.

    Raises:
        InputError: no source has it; the message says what each looked for.
    """
    missing = []
    for source in sources:
        try:
            return source()
        except Unavailable as error:
            missing.append(f"  - {error}")
    raise InputError(f"{what} is in none of these places:\n" + "\n".join(missing))


def images_and_labels(images: ByteArray, labels: ByteArray, *, white: int = 255) -> Data:
    """Data from (n, height, width) grey or (n, height, width, channels) uint8 images; `white` becomes 1.0."""
    x = torch.from_numpy(images.astype(np.float32)).div_(white)
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return Data(x, torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels)))
