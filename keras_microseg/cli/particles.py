"""Commands of `keras-microseg particles ...` around the detector: train, detect, evaluate, inspect."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Particles as instances: Mask R-CNN, linking in 3D, detachment.")
