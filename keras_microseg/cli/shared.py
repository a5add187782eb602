"""What the commands share: options, progress bars, the last words of a run."""

from __future__ import annotations

import ast
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

_SECONDS_BETWEEN_LINES = 60.0


class Group(typer.core.TyperGroup):
    """Prints foreseen errors as they stand, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        from keras_microseg.checks import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            fail(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            fail(str(stop) or "Stopped.")
            raise typer.Exit(130) from stop


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made when missing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in the same folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run in that folder.")]
PixelSizeOption = Annotated[
    str | None,
    typer.Option("--pixel-size", "-p", help='Edge length of a pixel, like 1.2nm or "1.2 x 1.3 um" (y before x). '
                 "Default: from the file."),
]  # fmt: skip
Unit = Annotated[str | None, typer.Option("--unit", help="Unit of all lengths: nm, um, mm. Default: one that fits.")]
InfoBar = Annotated[
    str, typer.Option("--info-bar", help="First pixel row of the microscope's data bar, 'auto' to find it, or 'none'.")
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="jax, torch or tensorflow. Default: KERAS_BACKEND, else the first."),
]
Seed = Annotated[int, typer.Option("--seed", help="Start of all random numbers; the same seed gives the same result.")]


def examples(*lines: str) -> str:
    """Commands to copy, for the end of a help text."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def use_backend(name: str | None) -> None:
    """Choose the backend before keras loads, and say which."""
    if name:
        os.environ["KERAS_BACKEND"] = name
    from keras_microseg import backend

    typer.echo(f"Backend: {backend.select()}", err=True)


def parse_row(text: str) -> str | int | None:
    """'none' -> None, digits -> int, anything else as it is."""
    if text.lower() == "none":
        return None
    return int(text) if text.isdigit() else text


def parse_size(text: str) -> tuple[int, int]:
    """'712x1024' -> (712, 1024); one number stands for both."""
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts) or len(parts) not in (1, 2):
        raise typer.BadParameter(f"write rows x columns, like 712x1024. Received: {text!r}", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def parse_changes(texts: list[str]) -> dict[str, Any]:
    """`["a=3", "b=none"]` -> `{"a": 3, "b": "none"}`: numbers, tuples and True or False as Python writes them."""
    changes = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise typer.BadParameter(f"write name=value. Received: {text!r}", param_hint="--set")
        try:
            changes[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[name.strip()] = value.strip()
    return changes


def open_console(*, stdout: bool = False) -> Any:
    """A rich console on stderr, or stdout; 120 columns wide where there is no terminal."""
    from rich.console import Console

    console = Console(stderr=not stdout)
    return console if console.is_terminal else Console(stderr=not stdout, width=120)


class TimeLeft:
    """How long a step still takes, by what it has done since it began or, resumed, went on.

    Args:
        done: what was done when it began.
        clock: seconds.
    """

    def __init__(self, done: float = 0, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._start = self._last = (clock(), done)

    def update(self, done: float) -> None:
        if done < self._last[1]:  # a second training under the same name
            self._start = (self.clock(), done)
        self._last = (self.clock(), done)

    def seconds(self, total: float) -> float | None:
        """Seconds until `total` is done; None while nothing tells."""
        moved = self._last[1] - self._start[1]
        if moved <= 0:
            return None
        each, now = (self._last[0] - self._start[0]) / moved, self.clock()
        left = (total - self._last[1]) * each - (now - self._last[0])
        # slower than before: by the mean until now
        return left if left > 0 else (total - self._last[1]) * (now - self._start[0]) / moved

    def words(self, total: float) -> str:
        """`"0:12:30 left"`, or nothing while nothing tells."""
        seconds = self.seconds(total)
        return "" if seconds is None else f"{datetime.timedelta(seconds=round(seconds))} left"


@contextlib.contextmanager
def show_progress() -> Iterator[Any]:
    """Shows how far a run is: bars on a terminal; elsewhere a line on stderr each minute, for logs and notebooks."""
    console = open_console()
    left: dict[str, TimeLeft] = {}

    def note(step: str, done: float) -> TimeLeft:
        left.setdefault(step, TimeLeft(done)).update(done)
        return left[step]

    if not console.is_terminal:
        told = time.monotonic()

        def tell(step: str, done: float, total: int, item: str) -> None:
            nonlocal told
            remaining = note(step, done)
            if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                words = [f"{step} {int(done)}/{total}", item, remaining.words(total)]
                typer.echo(", ".join(filter(None, words)), err=True)

        yield tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Remaining(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Any) -> Text:
            return Text(left[task.description].words(task.total or 0), style="progress.remaining")

    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[item]}", markup=False), Remaining())  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: float, total: int, item: str) -> None:
            note(step, done)
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, item=item)
            bars.update(tasks[step], completed=done, total=total, item=item)

        yield show


def finish(results: Any) -> None:
    """Say what was found and where it lies; leave with code 1 when something failed."""
    typer.echo(f"{len(results.table)} particles in {len(results.images)} images.")
    for text in results.highlights():
        typer.echo(text)
    for warning in results.warnings:
        typer.echo(f"Note: {warning}", err=True)
    if results.report_path:
        typer.echo(f"Report: {results.report_path}")
    list_failures(results.failures)


def list_failures(failures: Any) -> None:
    """Name what failed and leave with code 1; nothing when nothing did."""
    if not failures:
        return
    fail(f"{len(failures)} failed:")
    for failure in failures:
        fail(f"  {failure.message}")
    raise typer.Exit(1)


def fail(text: str) -> None:
    """A line on stderr, red on a terminal."""
    typer.secho(text, fg=typer.colors.RED if sys.stderr.isatty() else None, err=True)
