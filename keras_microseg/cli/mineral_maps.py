"""Commands of `keras-microseg mineral ...` that make whole maps: predict, view."""

from __future__ import annotations

import typer

app = typer.Typer()
