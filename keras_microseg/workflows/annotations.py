"""Workflow `annotations`: check annotation files, convert them, split them into parts. Needs no keras."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.io import annotations as notes
from keras_microseg.workflows.steps import run_facts

logger = logging.getLogger(__name__)

_NEED_SIZE = ("coco", "coco-runs", "labelme", "labels")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to read, and what to make of it.

    Attributes:
        source: annotation file, or folder of labelme files, ImageJ sets or label images.
        images: folder of the annotated images, or None.
        source_format: one of `notes.FORMATS`; None = by content.
        category: for VIA: the region attribute that names the class.
        categories: the only categories allowed; empty = those of the file.
        skip_absent: leave out images that are not in `images`, without calling it an error.
        target: format to convert to, one of `notes.TARGETS`; None = check only.
        out: file, or folder for labelme, imagej and labels; with `shares`, a folder with a file or folder per part.
        shares: part -> share of the images; empty = no split.
        by: `"image"`, `"specimen"` (tiles and planes of one specimen stay together) or `"block"` (along `axis`).
        axis: direction of the blocks, `"z"`, `"y"` or `"x"`.
        guard: pixels kept free between blocks.
        seed: of the split by image.
        report: `.csv` or `.xlsx` that lists every problem, or None.
        overwrite: replace existing output.
    """

    source: str
    images: str | None = None
    source_format: str | None = None
    category: str | None = None
    categories: tuple[str, ...] = ()
    skip_absent: bool = False
    target: str | None = None
    out: str | None = None
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    by: str = "image"
    axis: str = "z"
    guard: float = 0
    seed: int = 0
    report: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.target is not None:
            check_choice("target", self.target, notes.TARGETS)
        if (self.target is None) != (self.out is None):
            raise UserError("A conversion needs both a format and an output. Give `target` and `out`.")
        if self.shares and self.target is None:
            raise UserError("A split writes a file per part. Give `target` and `out`.")
        check_choice("by", self.by, ("image", "specimen", "block"))
        check_choice("axis", self.axis, ("z", "y", "x"))
        check_number("guard", self.guard, minimum=0)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found and wrote.

    Attributes:
        annotations: what was read.
        problems: all that is wrong, errors and notes.
        written: files or folders, by part ("" = the whole).
        parts: part -> names of its images.
        leaks: pictures of different parts that lie too close.
    """

    annotations: notes.Annotations
    problems: tuple[notes.Problem, ...]
    written: dict[str, Path] = dataclasses.field(default_factory=dict)
    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    leaks: tuple[notes.Leak, ...] = ()

    @property
    def kinds(self) -> Counter[str]:
        """How often each kind of problem occurs."""
        return Counter(problem.kind for problem in self.problems)

    @property
    def table(self) -> pd.DataFrame:
        """A row per problem."""
        columns = ["file", "image", "object", "kind", "message", "is_error"]
        return pd.DataFrame([dataclasses.astuple(problem) for problem in self.problems], columns=columns)


def run(settings: Settings) -> Outcome:
    """Read, check, and write where asked; what is wrong is left out and listed, the rest goes on.

    Raises:
        FileError: the source as a whole cannot be read, or the output exists or cannot be written.
        UserError: nothing is left to write, or the images cannot be split as asked.
    """
    outputs = _outputs(settings)
    found = notes.read_annotations(
        settings.source,
        format=settings.source_format,
        images=settings.images,
        category=settings.category,
        drop_absent=settings.skip_absent,
    )
    problems = list(notes.check_annotations(found, categories=settings.categories or None))
    outcome = Outcome(found, ())
    if settings.target is not None:
        usable = notes.drop_unusable(found)
        if settings.target in _NEED_SIZE:
            message = f"its size is not known, so it is not in the {settings.target} output. Give its image."
            for image in usable.images:
                if image.size is None:
                    problems.append(notes.Problem(settings.source, image.name, "", "unknown size", message))
            usable = dataclasses.replace(usable, images=tuple(i for i in usable.images if i.size is not None))
        if not usable.images:
            raise UserError(f"{settings.source}: no image is left to write. Give the folder of the images.")
        parts, leaks = _split(usable, settings) if settings.shares else ({"": usable}, ())
        for part, content in parts.items():
            notes.write_annotations(outputs[part], content, settings.target)
            logger.info("%s: %d images, %d objects", outputs[part], len(content.images), content.num_regions)
        names = {part: [_name(image) for image in content.images] for part, content in parts.items()}
        outcome = Outcome(found, (), {part: outputs[part] for part in parts}, names, leaks)
    outcome = dataclasses.replace(outcome, problems=tuple(problems))
    if settings.report is not None:
        io.write_table(settings.report, outcome.table, facts={"source": settings.source, **run_facts()})
    return outcome


def _outputs(settings: Settings) -> dict[str, Path]:
    """Where each part goes; checked before anything is read."""
    if settings.out is None:
        return {}
    is_folder = settings.target in notes.FOLDER_TARGETS
    ending = "" if is_folder else ".json"
    outputs = {part: Path(settings.out) / f"{part}{ending}" for part in settings.shares} or {"": Path(settings.out)}
    for path in outputs.values():
        if not is_folder and (path.suffix.lower() != ".json" or path.is_dir()):
            raise FileError(path, "is no name for a JSON file.", f"{settings.target} is one file; name it like a.json.")
        exists = any(path.iterdir()) if path.is_dir() else path.exists()
        if exists and not settings.overwrite:
            raise FileError(path, "exists.", "Choose another output, or allow to overwrite it.")
        if path.resolve() == Path(settings.source).resolve():
            raise FileError(path, "is the source itself.", "Choose another output.")
    return outputs


def _name(image: notes.AnnotatedImage) -> str:
    return notes.place_of(image).name


def _split(
    annotations: notes.Annotations, settings: Settings
) -> tuple[dict[str, notes.Annotations], tuple[notes.Leak, ...]]:
    """The parts, and what leaks between them."""
    places = {_name(image): notes.place_of(image) for image in annotations.images}
    if settings.by == "block":
        parts = notes.split_blocks(list(places.values()), settings.shares, axis=settings.axis, guard=settings.guard)
    else:
        group = (lambda name: places[name].source) if settings.by == "specimen" else None
        parts = notes.split_images(list(places), settings.shares, seed=settings.seed, group=group)
    leaks = notes.find_leaks({part: [places[n] for n in names] for part, names in parts.items()}, guard=settings.guard)
    contents = {}
    for part in settings.shares:
        chosen = set(parts[part])
        images = tuple(image for image in annotations.images if _name(image) in chosen)
        contents[part] = dataclasses.replace(annotations, images=images)
    return contents, tuple(leaks)
