"""Workflow step `outlines`: from a few outlines of particles to a stock of many, and a report on how alike they are."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from keras_microseg.checks import UserError
from keras_microseg.measurement.outlines import compare_outlines
from keras_microseg.simulation.masks import Particles
from keras_microseg.simulation.outlines import OutlineSet, count_problems, read_outlines
from keras_microseg.workflows.steps import Progress, write_json

logger = logging.getLogger(__name__)

FEWEST, ADVISED = 4, 20
STOCK, REPORT, QUALITY = "particles.npz", "outlines.html", "quality.json"


@dataclasses.dataclass(frozen=True)
class OutlineTraining:
    """Outcome of `train_outlines`.

    Attributes:
        particles: generated particles, cleaned; the stock for the mask simulator.
        quality: facts of the comparison with the real outlines, see `OutlineComparison`, and "usable", the share of
            generated pictures that hold one whole particle.
        collapsed: why the training was stopped, or None.
        out_dir: folder with `particles.npz`, `outlines.html`, `quality.json` and `training/`.
    """

    particles: Particles
    quality: dict[str, Any]
    collapsed: str | None
    out_dir: Path


def train_outlines(
    outlines: OutlineSet | str | os.PathLike,
    out_dir: str | os.PathLike,
    settings: Any = "fast",
    *,
    seed: int = 0,
    resume: bool = False,
    callbacks: tuple = (),
    progress: Progress | None = None,
) -> OutlineTraining:
    """Learn to make outlines, make many, and compare them with the real ones.

    Args:
        outlines: single particles, or where their masks are (see `read_outlines`).
        out_dir: folder, see `OutlineTraining`.
        settings: `training.outlines.OutlineSettings` or the name of a preset: "paper", "fast", "gpu".
        seed: of all random numbers.
        resume: go on with the training in `out_dir`.
        callbacks: Keras callbacks.
        progress: called as `progress(step, done, total, item)` after each epoch.

    Raises:
        UserError: fewer than 4 outlines; settings that differ from those of the run to resume; nothing generated is a
            particle.
    """
    from keras_microseg.report.outlines import write_outline_report
    from keras_microseg.training.outlines import generate_outlines, outline_settings, train_generator
    from keras_microseg.training.progress import EpochProgress

    settings = outline_settings(settings)
    if not isinstance(outlines, OutlineSet):
        outlines = read_outlines(outlines)
    out_dir = Path(out_dir)
    if len(outlines) < FEWEST:
        raise UserError(
            f"{len(outlines)} outlines are too few to learn from; about 40 are a good number. Use the outlines "
            "themselves or analytic shapes as particles instead."
        )
    warnings = [f"{name}: {problem}" for name, problem in outlines.problems.items()]
    if len(outlines) < ADVISED:
        warnings.append(f"Only {len(outlines)} outlines: the network may merely copy them. About 40 are advised.")

    reporters = [EpochProgress(progress, "outlines")] if progress else []
    result = train_generator(
        outlines, out_dir / "training", settings, seed=seed, resume=resume, callbacks=(*callbacks, *reporters)
    )
    generated = generate_outlines(result.paths["generator"], settings.samples, seed=seed)
    comparison = compare_outlines(outlines, generated, seed=seed)
    particles = Particles.from_outlines(generated)
    particles.save(out_dir / STOCK)
    if result.stop_reason:
        warnings.insert(0, result.stop_reason)
    if comparison.copies > 0.1 + comparison.facts()["copies_real"]:
        warnings.append(f"{100 * comparison.copies:.0f} % of the generated outlines are copies of real ones.")
    usable = len(generated) / settings.samples
    if usable < 0.5:
        warnings.append(
            f"Only {100 * usable:.0f} % of the generated pictures hold one whole particle "
            f"({count_problems(generated.problems)}). Train longer."
        )
    quality = comparison.facts() | {"usable": usable, "generated": len(generated), "stop_reason": result.stop_reason}
    write_json(out_dir / QUALITY, quality)
    write_outline_report(
        out_dir / REPORT,
        outlines,
        generated,
        comparison,
        history=result.history,
        warnings=warnings,
        settings=dataclasses.asdict(settings) | {"seed": seed},
    )
    logger.info(
        "Outlines: %d of %d usable; distance %.3g (real among themselves %.3g), variety %.2f, copies %.1f %%.",
        len(generated), settings.samples, comparison.distance, comparison.reference, comparison.diversity,
        100 * comparison.copies,
    )  # fmt: skip
    return OutlineTraining(particles, quality, result.stop_reason, out_dir)
