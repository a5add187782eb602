"""The command line: one subcommand per workflow. Reads options, prints results; everything else is in `workflows`.

Each system of the package has a file here that holds its Typer application; this one joins them.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from keras_microseg import __version__
from keras_microseg.cli import (
    classify,
    commands,
    filament,
    filament_networks,
    mineral,
    mineral_maps,
    mineral_prepare,
    mineral_translate,
    particles,
    particles_measure,
    sem,
    sem_parts,
    volume,
    volume_networks,
)
from keras_microseg.cli.annotations import app as annotations_app
from keras_microseg.cli.shared import Group

app = typer.Typer(
    name="keras-microseg",
    cls=Group,
    help="Find, separate and measure particles in electron-microscopy images.",
    epilog="Start with: keras-microseg demo. Help on one command: keras-microseg segment --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras_microseg {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("keras_microseg").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("tifffile").setLevel(logging.WARNING if verbose else logging.CRITICAL)  # it names no file


app.registered_commands += commands.app.registered_commands
filament.app.registered_commands += filament_networks.app.registered_commands
sem.app.registered_commands += sem_parts.app.registered_commands
mineral.app.registered_commands += mineral_maps.app.registered_commands + mineral_prepare.app.registered_commands
particles.app.registered_commands += particles_measure.app.registered_commands
mineral.app.registered_commands += mineral_translate.app.registered_commands
volume.app.registered_commands += volume_networks.app.registered_commands
app.add_typer(filament.app, name="filament")
app.add_typer(sem.app, name="sem")
app.add_typer(volume.app, name="volume")
app.add_typer(particles.app, name="particles")
app.add_typer(mineral.app, name="mineral")
app.add_typer(classify.app, name="classify")
app.add_typer(annotations_app, name="annotations")
