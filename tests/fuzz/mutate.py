"""Small changes to bytes: what disks, transfers, editors and forgers do to a file."""

import random

INTERESTING = (
    *(bytes([b]) for b in (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x09, 0x0A, 0x22, 0x2D, 0x2E, 0x5B, 0x7B)),
    *(text.encode() for text in ("nan", "inf", "-1", "1e999", "0x1", "1_0", "9" * 30, "[" * 2000, "null", "\u0663")),
    *((2**bits - 1).to_bytes(8, "little") for bits in (31, 32, 63, 64)),
)


def flip(data: bytearray, draw: random.Random) -> None:
    """One bit."""
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def replace(data: bytearray, draw: random.Random) -> None:
    """One byte."""
    data[draw.randrange(len(data))] = draw.randrange(256)


def truncate(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def insert(data: bytearray, draw: random.Random) -> None:
    """Something that readers stumble over, or random bytes."""
    at = draw.randrange(len(data) + 1)
    data[at:at] = draw.choice(INTERESTING) if draw.random() < 0.7 else draw.randbytes(draw.randrange(1, 20))


def overwrite(data: bytearray, draw: random.Random) -> None:
    """The same, in place."""
    at, content = draw.randrange(len(data)), draw.choice(INTERESTING)
    data[at : at + len(content)] = content


def remove(data: bytearray, draw: random.Random) -> None:
    """A stretch."""
    at = draw.randrange(len(data))
    del data[at : at + draw.randrange(1, 20)]


def repeat(data: bytearray, draw: random.Random) -> None:
    """A stretch, again behind itself."""
    at = draw.randrange(len(data))
    part = data[at : at + draw.randrange(1, 40)]
    data[at:at] = part


def swap(data: bytearray, draw: random.Random) -> None:
    """Digits and other bytes change places."""
    a, b = draw.randrange(len(data)), draw.randrange(len(data))
    data[a], data[b] = data[b], data[a]


CHANGES = (flip, replace, truncate, insert, overwrite, remove, repeat, swap)


def mutate(original: bytes, draw: random.Random) -> bytes:
    """Between one and six changes; most often one or two."""
    data = bytearray(original)
    for _ in range(min(6, 1 + int(draw.expovariate(1.0)))):
        if not data:
            break
        draw.choice(CHANGES)(data, draw)
    return bytes(data)
