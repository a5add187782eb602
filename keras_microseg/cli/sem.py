"""Commands of the label-free particle workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.shared import (
    Backend,
    InfoBar,
    Out,
    Overwrite,
    PixelSizeOption,
    Resume,
    Seed,
    examples,
    list_failures,
    open_console,
    parse_changes,
    parse_row,
    show_progress,
    use_backend,
)

app = typer.Typer(
    help="Particles without manual labels: from images and some outlines to a trained network and a size table.",
    no_args_is_help=True,
)


@app.command(
    epilog=examples(
        "keras-microseg sem run IMAGES --outlines OUTLINES --out RESULT --dry-run",
        "keras-microseg sem run IMAGES --outlines OUTLINES --out RESULT",
        "keras-microseg sem run IMAGES --out RESULT --preset gpu --set translation_epochs=80",
        "keras-microseg sem run IMAGES --outlines OUTLINES --out RESULT --resume",
    )
)
def run(
    images: Annotated[list[Path], typer.Argument(help="Micrographs: files or folders, 20 or more of one kind.")],
    out: Out,
    outlines: Annotated[
        Path | None,
        typer.Option(help="Folder of single-particle masks, one white particle per file. Default: analytic shapes."),
    ] = None,
    preset: Annotated[str, typer.Option(help="fast (two CPU cores), paper (as published), gpu.")] = "fast",
    particles: Annotated[
        str | None,
        typer.Option(help="wgan: learn from the outlines; outlines: use them as they are; analytic: needs none."),
    ] = None,
    polarity: Annotated[str, typer.Option(help="'bright' particles on dark ground, 'dark', or 'auto'.")] = "auto",
    pixel_size: PixelSizeOption = None,
    info_bar: InfoBar = "auto",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one setting, like translation_epochs=10 or network_start=none."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this step.")] = None,
    separate: Annotated[bool, typer.Option("--separate", help="Each step in a process of its own.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print steps, time and memory; write nothing.")] = False,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn to segment the particles of IMAGES without labels, and measure them."""
    use_backend(backend)
    from keras_microseg.workflows import sem_particles

    changes: dict[str, Any] = parse_changes(change or [])
    if particles is not None:
        changes["particles"] = particles
    settings = sem_particles.Settings.from_preset(
        preset, [str(path) for path in images], outlines, polarity=polarity, pixel_size=pixel_size,
        info_bar=parse_row(info_bar), seed=seed, **changes,
    )  # fmt: skip
    if dry_run:
        _print_plan(sem_particles.make_plan(settings))
        return
    with show_progress() as progress:
        outcome = sem_particles.run(
            settings, out, resume=resume, overwrite=overwrite, until=until, separate=separate, progress=progress
        )
    for warning in outcome.warnings:
        typer.echo(f"Note: {warning}", err=True)
    for name, path in (
        ("Model", outcome.model_path), ("Particles", outcome.particles_path), ("Report", outcome.report_path),
    ):  # fmt: skip
        if path:
            typer.echo(f"{name}: {path}")
    list_failures(outcome.failures)


def _print_plan(plan: Any) -> None:
    from rich.table import Table

    table = Table(title="Plan (estimates, good to a factor of about two)")
    for heading, justify in (("Step", "left"), ("Work", "left"), ("Time", "right"), ("Memory", "right")):
        table.add_column(heading, justify=justify)
    for row in plan.rows():
        table.add_row(*row)
    open_console(stdout=True).print(table)
