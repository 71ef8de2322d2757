"""A bar with the time left, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """One line of progress; also a plain line every tenth of the way where there is no terminal."""

    def __init__(self, progress: Progress, label: str, done: int, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(label, completed=done, total=total, note="")
        self._label = label
        self._next_tenth = done * 10 // max(total, 1) + 1

    def advance(self, steps: int, note: str = "") -> None:
        """Count finished steps; `note` is shown behind the bar."""
        self._progress.update(self._task, advance=steps, note=note)
        if self._progress.console.is_terminal:
            return
        task = self._progress.tasks[self._task]
        tenth = int(task.completed * 10 // max(task.total or 1, 1))
        if tenth >= self._next_tenth:
            self._next_tenth = tenth + 1
            left = f"{task.time_remaining:.0f} s left" if task.time_remaining is not None else ""
            self._progress.console.print(f"{self._label}: {task.completed:.0f}/{task.total:.0f} {left} {note}".rstrip())


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress from `done` to `total` while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Bar(bar, label, done, total)
