"""Arrays on disk with their provenance: one npz file, which opens in NumPy without this package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certify.errors import InputError

PROVENANCE = "provenance"


def write_record(path: Path, arrays: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
    """Write arrays, and where they come from as a JSON text under the name "provenance".

    Args:
        path: Ends in .npz; its folder is made where missing.
        arrays: By name.
        provenance: Plain values.

    Raises:
        InputError: another suffix, or an array named "provenance".
    """
    if path.suffix != ".npz":
        raise InputError(f"need a file that ends in .npz; got {path}")
    if PROVENANCE in arrays:
        raise InputError(f"need another name than {PROVENANCE!r} for an array")
    path.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    values[PROVENANCE] = np.array(json.dumps(provenance, sort_keys=True))
    np.savez_compressed(path, **values)


def read_record(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a record, and its provenance. Nothing in the file is executed: an array of objects is refused.

    Raises:
        InputError: the file is missing, or is no record.
    """
    if not path.is_file():
        raise InputError(f"need a record; no file at {path}")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        provenance = dict(json.loads(str(arrays.pop(PROVENANCE))))
    except Exception as error:  # bytes that are no archive fail in any way: zlib.error, MemoryError, LZMAError ...
        raise InputError(f"{path} is not a record of this package: {error}") from error
    return arrays, provenance
