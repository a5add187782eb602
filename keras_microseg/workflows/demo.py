"""Workflow `demo`: simulate micrographs, segment and measure them, compare with what was drawn, show the report."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import webbrowser
from pathlib import Path

from keras_microseg import backend
from keras_microseg.checks import check_choice
from keras_microseg.report.results import Results
from keras_microseg.workflows.evaluate_labels import Evaluation, evaluate
from keras_microseg.workflows.segment_images import default_model_path, segment
from keras_microseg.workflows.simulate_images import simulate
from keras_microseg.workflows.steps import Progress

logger = logging.getLogger(__name__)

SIZE = (512, 704)
DIAMETER = (16.0, 34.0)
PRESET = "tem"
"""Both methods do well on it; the simulated SEM images hold some that even people find hard."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Outcome of `run_demo`.

    Attributes:
        segmentation: what was found.
        evaluation: scores against what was drawn.
    """

    segmentation: Results
    evaluation: Evaluation

    @property
    def table(self) -> object:
        """The particle table."""
        return self.segmentation.table

    @property
    def true_particles(self) -> int:
        """Particles that were drawn."""
        return self.evaluation.true_objects

    @property
    def f1(self) -> float:
        """Share of particles found rightly, at IoU > 0.5."""
        return self.evaluation["f1"]


def choose_method(method: str) -> str:
    """`"network"` when a backend and the default model are there, else `"classical"`, for `"auto"`."""
    check_choice("method", method, ("auto", "network", "classical"))
    if method != "auto":
        return method
    has_network = backend.installed() and importlib.util.find_spec("keras") and default_model_path().is_file()
    return "network" if has_network else "classical"


def run_demo(
    out: str | os.PathLike, *, method: str = "auto", count: int = 4, seed: int = 7, progress: Progress | None = None
) -> Demo:
    """Run the whole path on simulated micrographs; an earlier demo in `out` is replaced.

    Args:
        out: folder; gets `data/` (micrographs and truth) and `result/` (report).
        method: `"auto"`, `"network"` or `"classical"`.
        count: number of micrographs.
        seed: of the simulation.
        progress: called as `progress(step, done, total, item)`.
    """
    out = Path(out)
    method = choose_method(method)
    data = simulate(
        count, out / "data", seed=seed, preset=PRESET, size=SIZE, diameter=DIAMETER, overwrite=True, progress=progress
    )
    found = segment(data / "images", out / "result", method=method, overwrite=True, progress=progress)
    return Demo(found, evaluate(out / "result", data, progress=progress, resamples=200))


def open_in_browser(path: Path | None) -> bool:
    """Show a file in the web browser; False when there is none to show it in."""
    try:
        return path is not None and webbrowser.open(path.resolve().as_uri())
    except webbrowser.Error as error:
        logger.info("No browser: %s", error)
        return False
