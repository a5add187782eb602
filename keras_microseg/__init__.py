"""keras_microseg: segment and measure particles in electron-microscopy images.

Importing the package loads neither keras nor a framework: names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Image": "image",
    "PixelSize": "image",
    "open_image": "io",
    "find_images": "io",
    "read_labels": "io",
    "write_labels": "io",
    "measure_particles": "measurement",
    "size_distribution": "measurement",
    "segment": "workflows.segment_images",
    "measure": "workflows.measure_labels",
    "simulate": "workflows.simulate_images",
    "train": "workflows.train_segmentation",
    "evaluate": "workflows.evaluate_labels",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
