"""Commands of `keras-microseg mineral ...` before and after the network: clean, register, tiles, quantify."""

from __future__ import annotations

import typer

app = typer.Typer()
