"""What the commands share: options, progress bars, the last words of a run."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core


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


@contextlib.contextmanager
def show_progress() -> Iterator[Any]:
    """A progress bar on a terminal, else None."""
    console = open_console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[item]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int, item: str) -> None:
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
