"""Random streams named by what they are for, so that no result depends on order, batch, shard or worker."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from certify.errors import InputError

# torch's CPU generator is an mt19937: 624 words of 32 bits behind a header of 24 bytes, each word stored in 64 bits.
_MT_WORDS = 624
_MT_STATE_BYTES = 5056
_MT_FIRST_WORD = 3


@dataclass(frozen=True, slots=True)
class Stream:
    """A source of randomness with a name; children are named in turn.

    The bits are SHAKE-256 of the seed and the path of labels: two different names give independent bits for every
    practical purpose, and the same name gives the same bits on every machine.

    Args:
        seed: The root; any integer in [0, 2**63).
        path: Labels from the root to here. Use `child`.

    Raises:
        InputError: the seed is not an integer in range, or a label is neither str nor int.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"need an integer seed with 0 <= seed < 2**63; got {self.seed!r}")
        for label in self.path:
            if isinstance(label, bool) or not isinstance(label, str | int):
                raise InputError(f"a stream is named by str and int labels; got {label!r}")

    def child(self, *labels: str | int) -> "Stream":
        """Name a stream below this one."""
        return Stream(self.seed, self.path + labels)

    def bits(self, count: int) -> bytes:
        """The first `count` bytes of this stream's own bits."""
        return hashlib.shake_256(repr((self.seed, *self.path)).encode()).digest(count)

    def uniform(self) -> float:
        """The stream's number in the open interval (0, 1), with 53 bits."""
        return ((int.from_bytes(self.bits(8), "big") >> 11) + 0.5) / 2**53

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A torch generator on `device` that starts where this stream does.

        On the CPU all 19,968 bits of the generator's state come from the stream. `manual_seed` would keep 32 of the
        seed's 64 bits there, and a certified data set uses millions of streams: some would collide.
        """
        generator = torch.Generator(device)
        if generator.device.type != "cpu":
            return generator.manual_seed(int.from_bytes(self.bits(8), "big") >> 1)
        state = generator.get_state()
        if state.numel() != _MT_STATE_BYTES:  # pragma: no cover - another torch
            raise RuntimeError(f"this torch stores its CPU generator in {state.numel()} bytes, not {_MT_STATE_BYTES}")
        words = state.numpy().view(np.uint64)
        words[_MT_FIRST_WORD : _MT_FIRST_WORD + _MT_WORDS] = np.frombuffer(self.bits(4 * _MT_WORDS), np.uint32)
        header = state.numpy()[8:24].view(np.uint32)
        header[:] = 1, 1, 0, 0  # left = 1, seeded = 1, next = 0: the state is mixed before the first draw
        return generator.set_state(state)
