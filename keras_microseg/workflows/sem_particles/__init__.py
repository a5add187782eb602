"""Particles in micrographs without manual labels: from images and some outlines to a trained network and a size table.

    look       what the images are like: polarity, sizes, coverage
    outlines   a WGAN-GP learns the outlines of single particles
    masks      particles are placed into masks that resemble the images; every particle keeps its label
    translate  a CycleGAN learns to turn masks into micrographs
    pairs      every mask becomes a micrograph; those that do not show their mask are dropped
    train      a network with instance outputs learns from the pairs
    segment    the real images: labels, tables, size distribution, report
    report     what happened, in pictures and numbers

Source of the idea: Ruehle, Krumrey, Hodoroaba (2021), Sci. Rep. 11, 4942.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from keras_microseg.checks import check_choice
from keras_microseg.workflows.sem_particles.look import look_at_images
from keras_microseg.workflows.sem_particles.masks import check_outlines, make_masks, make_outlines
from keras_microseg.workflows.sem_particles.network import MODEL, SEGMENTATION, segment_real_images, train_network
from keras_microseg.workflows.sem_particles.plan import Plan, make_plan
from keras_microseg.workflows.sem_particles.settings import Settings
from keras_microseg.workflows.sem_particles.summary import REPORT, write_summary
from keras_microseg.workflows.sem_particles.translation import make_pairs, train_translation
from keras_microseg.workflows.steps import MANIFEST, Failure, Progress, RunFolder, Step, run_steps

STEPS = (
    Step("look", look_at_images),
    Step("outlines", make_outlines),
    Step("masks", make_masks),
    Step("translate", train_translation),
    Step("pairs", make_pairs),
    Step("train", train_network),
    Step("segment", segment_real_images),
    Step("report", write_summary, always=True),
)
__all__ = ["STEPS", "Outcome", "Plan", "Settings", "make_plan", "run"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        path: the run's folder.
        model_path: the trained network, ready for `segment(model=...)`; None when only earlier steps were run.
        particles_path: table of the measured particles.
        report_path: the page that tells how it went.
        failures: images that could not be used.
        warnings: what the user should know.
    """

    path: Path
    model_path: Path | None
    particles_path: Path | None
    report_path: Path | None
    failures: Sequence[Failure]
    warnings: Sequence[str]


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    until: str | None = None,
    separate: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Run the workflow. What was interrupted goes on with `resume` and ends as it would have without.

    Args:
        settings: see `Settings.from_preset`.
        out: folder for everything; each step leaves files that can be looked at.
        resume, overwrite: see `RunFolder`.
        until: name of the last step to run; None = all.
        separate: every step in a process of its own, which gives accelerator memory back.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: settings or images with which it cannot work, a step that went wrong; the message says what to do.
    """
    names = [step.name for step in STEPS]
    if until is not None:
        check_choice("until", until, tuple(names))
    if not (resume and (Path(out) / MANIFEST).is_file()):
        check_outlines(settings)
    folder = RunFolder(out, settings, command="sem particles", resume=resume, overwrite=overwrite, progress=progress)
    chosen = STEPS[: names.index(until) + 1] if until else STEPS
    run_steps(folder, chosen, separate=separate)

    def made(*parts: str) -> Path | None:
        path = folder.path.joinpath(*parts)
        return path if path.is_file() else None

    return Outcome(
        folder.path,
        made(MODEL),
        made(SEGMENTATION, "particles.csv"),
        made(REPORT),
        folder.failures(),
        folder.manifest.get("warnings", []),
    )
