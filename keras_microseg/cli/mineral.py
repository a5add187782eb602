"""Commands of `keras-microseg mineral ...` around networks: train, evaluate."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Mineral maps of rock and phase maps of materials.")
