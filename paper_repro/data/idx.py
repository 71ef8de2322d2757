"""The IDX format of the MNIST family."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from certify import InputError
from paper_repro.data.dataset import ByteArray

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> ByteArray:
    """Decode a file of unsigned bytes, plain or gzipped (told apart by content).

    Raises:
        InputError: truncated, too long, or not an IDX file of unsigned bytes; the message names the file.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: the gzip stream is damaged ({error}); replace the file") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UNSIGNED_BYTE:
        raise InputError(f"{path}: need an IDX file of unsigned bytes (it begins 00 00 08); got {raw[:4].hex(' ')}")
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise InputError(f"{path}: truncated in the header, {len(raw)} bytes; replace the file")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    body = raw[4 + 4 * rank :]
    if len(body) != math.prod(shape):
        raise InputError(f"{path}: need {math.prod(shape)} bytes for shape {shape}; got {len(body)}; replace the file")
    return np.frombuffer(body, np.uint8).reshape(shape)
