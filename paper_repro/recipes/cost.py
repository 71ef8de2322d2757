"""What methods cost: measured side by side, recorded, and shown in multiples of the first one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from paper_repro.recipes.bench import Bench
from paper_repro.recipes.recipe import Table
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import Measured, exactly
from paper_repro.training import Training
from paper_repro.training.cost import measure
from paper_repro.training.fit import Method


def cost_record(
    bench: Bench, methods: Mapping[str, Method], training: Training, updates: int, start: Path | None = None
) -> Record:
    """Let methods take turns on the bench's data, from random weights or from those; the first one is the unit.

    Its arrays are (methods,): passes per example and update, seconds per epoch, bytes.
    """
    costs = measure(methods, bench.make, bench.train, training, updates=updates, device=bench.device, start=start)
    fields = ("forwards", "backwards", "seconds", "memory")
    arrays = {field: np.array([getattr(cost, field) for cost in costs.values()], np.float64) for field in fields}
    return Record(arrays, {"names": list(costs)})


def passes(records: Records, name: str, stage: str = "cost") -> Measured:
    """Forward and backward passes of a method, in multiples of the first one's."""
    record = records[stage]
    first = record.notes["names"][0]
    total, unit = (float(record.of("forwards", n) + record.of("backwards", n)) for n in (name, first))
    return exactly(total / unit)


def cost_table(records: Records, stage: str = "cost") -> Table:
    """The table of a cost record."""
    record = records[stage]
    names, arrays = record.notes["names"], record.arrays
    first = names[0]
    header = ["method", "forward", "backward", f"passes / {first}", "s / epoch", f"time / {first}", "peak MiB"]
    body = [
        [
            name,
            f"{arrays['forwards'][i]:g}",
            f"{arrays['backwards'][i]:g}",
            f"{passes(records, name, stage).value:.2f}",
            f"{arrays['seconds'][i]:.3g}",
            f"{arrays['seconds'][i] / arrays['seconds'][0]:.2f}",
            f"{arrays['memory'][i] / 2**20:.1f}",
        ]
        for i, name in enumerate(names)
    ]
    return header, body
