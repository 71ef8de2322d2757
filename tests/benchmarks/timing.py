"""Side-by-side timing: the candidates take turns, so that a machine that slows down slows all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median

ROUNDS = 5


def seconds(candidates: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median wall clock of each candidate over `rounds` turns, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, candidate in candidates.items():
            started = time.perf_counter()
            candidate()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: median(t) for name, t in times.items()}
