"""Commands of `keras-microseg particles ...` on detected particles: link, measure."""

from __future__ import annotations

import typer

app = typer.Typer()
