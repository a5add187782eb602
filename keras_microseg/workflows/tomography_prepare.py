"""Workflows `volume stack`, `volume mask`, `volume phantom` and `volume info`: what comes before a network.

Every step reads and writes slabs and keeps to `max_ram`; interrupted ones go on where they ended.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import __version__, io
from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes
from keras_microseg.image import Image, PixelSize
from keras_microseg.intensity import VolumeStatistics, volume_statistics
from keras_microseg.segmentation.pseudo_labels import (
    MaskSettings,
    check_finite_slices,
    make_mask,
    mask_slab,
    phase_filter_strength,
)
from keras_microseg.simulation.phantoms import PRESETS, PhantomSettings, plan_phantom
from keras_microseg.tiling import slab_thickness, slabs
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json

KINDS = ("zarr", "tif", "npy")
_HOW: dict[str, Any] = {"metadata": {"lasting": False}}  # settings that do not decide about the result


@dataclasses.dataclass(frozen=True)
class StackSettings:
    """What to stack.

    Attributes:
        source: folder or pattern of slices, or any volume `io.open_volume` knows.
        start, stop: first slice and the one after the last, counted from 0; clamped to what there is.
        kind: `zarr`, `tif` (BigTIFF above 4 GB) or `npy`.
        voxel_size: edge lengths z, y, x with unit; None = what the files say.
        dataset: name of the array in HDF5, Zarr or zip.
        axes: letters of the stored axes, for example `YXZ`.
        gaps: `error` or `report`, for missing slice numbers.
        nan: `error`, or `zero` to replace NaN and infinity.
        max_ram: bytes to work with, such as `2GB`.
        report: write `report.html`.
    """

    source: str
    start: int = 0
    stop: int | None = None
    kind: str = "zarr"
    voxel_size: str | None = None
    dataset: str | None = None
    axes: str | None = None
    gaps: str = "error"
    nan: str = "error"
    max_ram: str = dataclasses.field(default="2GB", **_HOW)
    report: bool = dataclasses.field(default=True, **_HOW)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("nan", self.nan, ("error", "zero"))
        check_number("start", self.start, minimum=0, integer=True)
        parse_bytes(self.max_ram)


@dataclasses.dataclass(frozen=True)
class MaskRun:
    """What to make a mask of.

    Attributes:
        source: the volume.
        mask: how.
        phase_from: energy (keV), distance from sample to detector (m) and delta / beta, in place of
            `mask.phase_filter`; the voxel size must be known.
        kind: of the output, see `StackSettings`.
        voxel_size, dataset, max_ram, report: see `StackSettings`.
    """

    source: str
    mask: MaskSettings = dataclasses.field(default_factory=MaskSettings)
    phase_from: tuple[float, float, float] | None = None
    kind: str = "zarr"
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)
    report: bool = dataclasses.field(default=True, **_HOW)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        parse_bytes(self.max_ram)


@dataclasses.dataclass(frozen=True)
class PhantomRun:
    """What phantom to write.

    Attributes:
        phantom: how it looks.
        kind: of the output, see `StackSettings`.
        voxel_size: edge length given to the voxels, with unit; None = unknown.
        max_ram, report: see `StackSettings`.
    """

    phantom: PhantomSettings = dataclasses.field(default_factory=PhantomSettings)
    kind: str = "zarr"
    voxel_size: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)
    report: bool = dataclasses.field(default=True, **_HOW)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.voxel_size is not None:
            PixelSize.parse(self.voxel_size, ndim=3)
        parse_bytes(self.max_ram)


def phantom_settings(preset: str | None = None, **changes: Any) -> PhantomSettings:
    """Phantom settings of a look in `PRESETS`, with changes."""
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    return PhantomSettings(**{**(PRESETS[preset] if preset else {}), **changes})


def stack(
    settings: StackSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Slices to one volume, slab by slab.

    Args:
        settings: what to stack.
        out: folder; gets `tomographic_image_START-STOP.zarr` (or `.tiff`, `.npy`), `stack.json` and `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        Path of the volume.

    Raises:
        FileError: slices that differ in size or type, gaps in their numbers, more than the disk has left, NaN.
    """
    source = _open(settings.source, settings, axes=settings.axes, gaps=settings.gaps)
    start = min(settings.start, source.shape[0] - 1)
    stop = source.shape[0] if settings.stop is None else min(max(settings.stop, start), source.shape[0])
    if stop <= start:
        raise UserError(f"No slice is left between start={settings.start} and stop={settings.stop}.")
    folder = RunFolder(out, settings, command="volume stack", resume=resume, overwrite=overwrite, progress=progress)
    ending = "tiff" if settings.kind == "tif" else settings.kind
    target = folder.file(f"tomographic_image_{start}-{stop}.{ending}")

    def copy(folder: RunFolder) -> None:
        part = source.crop((slice(start, stop), slice(None), slice(None)))
        facts = _copy(part, target, settings, folder)
        write_json(folder.file("stack.json"), facts)

    def report(folder: RunFolder) -> None:
        image = io.open_volume(target)
        facts = {"Stacked from": settings.source}
        _report(folder, "Stack", image, volume_statistics(image.data, max_ram=settings.max_ram), facts=facts)

    run_steps(folder, [Step("stack", copy), *([Step("report", report)] if settings.report else [])])
    return target


def _copy(image: Image, target: Path, settings: StackSettings, folder: RunFolder) -> dict[str, Any]:
    numbers = io.slice_numbers(image)
    warnings = image.metadata.get("warnings", [])
    io.check_disk_space(target, image.data.nbytes, f"the stack of {len(numbers)} slices")
    facts = {
        "source": settings.source, "slice_numbers": numbers.tolist(), "warnings": warnings,
        "version": f"keras_microseg {__version__}",
    }  # fmt: skip
    thickness = slab_thickness(
        image.shape, settings.max_ram, 5 * image.dtype.itemsize, multiple_of=io.volume_writer.CHUNKS[0]
    )
    with io.create_volume(
        target, image.shape, image.dtype, chunks=_chunks(thickness, image.shape[0]), voxel_size=image.pixel_size,
        facts=facts, key=_lasting(dataclasses.asdict(settings)), resume=True,
    ) as out:  # fmt: skip
        thickness = max(1, thickness // out.chunks[0]) * out.chunks[0]
        replaced = 0
        for slab in slabs(image.shape[0], thickness):
            if out.is_done(f"slab {slab.write.start}:{slab.write.stop}"):
                continue
            block = np.asarray(image.data[slab.write])
            if settings.nan == "error":
                check_finite_slices(block, numbers=numbers[slab.write], max_ram=settings.max_ram)
            elif block.dtype.kind == "f":
                finite = np.isfinite(block)
                replaced += int(block.size - np.count_nonzero(finite))
                block = np.where(finite, block, 0)
            out[slab.write] = block
            out.mark_done(f"slab {slab.write.start}:{slab.write.stop}")
            _tell(folder, "stack", slab.write.stop, image.shape[0], f"slice {numbers[slab.write.stop - 1]}")
    return {
        **facts,
        "shape": image.shape,
        "dtype": str(image.dtype),
        "voxel_size": image.pixel_size,
        "replaced": replaced,
    }


def mask(
    settings: MaskRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """An automatic mask (pseudo-labels) of a volume; arguments and errors as `stack`.

    The folder gets `mask.zarr` (0 and 255, or classes), `mask.json` with its provenance, and `report.html`.
    """
    source = _open(settings.source, settings)
    how = settings.mask
    if settings.phase_from is not None:
        how = dataclasses.replace(how, phase_filter=_phase_strength(source, settings.phase_from))
    folder = RunFolder(out, settings, command="volume mask", resume=resume, overwrite=overwrite, progress=progress)
    target = folder.file(f"mask.{settings.kind}")

    def run(folder: RunFolder) -> None:
        numbers = io.slice_numbers(source)
        check_finite_slices(source.data, numbers=numbers, max_ram=settings.max_ram)
        facts = {"source": settings.source, "slice_numbers": numbers.tolist()}
        chunks = _chunks(mask_slab(source, how, settings.max_ram), source.shape[0])
        with io.create_volume(
            target, source.shape, np.uint8, chunks=chunks, voxel_size=source.pixel_size, facts=facts,
            key=_lasting(dataclasses.asdict(settings)), resume=True,
        ) as writer:  # fmt: skip
            if writer.complete:
                return
            found = make_mask(
                source.data, writer, how, max_ram=settings.max_ram, scratch_dir=folder.path,
                progress=lambda done, total: _tell(folder, "mask", done, total, ""),
            )  # fmt: skip
            writer.add_facts({key: value for key, value in found.items() if key != "white_share"})
        write_json(folder.file("mask.json"), {**facts, **found})

    def report(folder: RunFolder) -> None:
        labels = io.open_volume(target)
        facts = io.open_volume(target).metadata.get("provenance", {})
        statistics = volume_statistics(source.data, max_ram=settings.max_ram)
        marks = {}
        if not how.clahe and not how.sigma and not how.phase_filter:
            marks = {f"threshold {i + 1}": value for i, value in enumerate(facts.get("thresholds", []))}
        share = volume_statistics(labels.data, max_ram=settings.max_ram)
        white = share.counts[1:].sum() / share.count
        shown = {
            "Made by": facts.get("method", ""),
            "Thresholds": ", ".join(f"{value:.5g}" for value in facts.get("thresholds", [])),
            "Inverted slices": ", ".join(map(str, facts.get("inverted_slices", []))) or "none",
        }
        _report(
            folder, "Pseudo-labels", source, statistics, labels=labels, marks=marks, facts=shown,
            cards={"of the voxels are object": f"{white:.2%}"}, outlines="mask",
            warnings=["The mask was made automatically: pseudo-labels, not ground truth. Scores against it say how "
                      "well it is imitated, not how true it is."],
        )  # fmt: skip

    run_steps(folder, [Step("mask", run), *([Step("report", report)] if settings.report else [])])
    return target


def _phase_strength(image: Image, physics: tuple[float, float, float]) -> float:
    size = io.check_voxel_size(image)
    if size is None or not size.is_square:
        raise UserError(
            f"{image.name}: the phase filter needs cubic voxels of known size. Pass the voxel size, such as 0.65um. "
            f"Received: {size}"
        )
    return phase_filter_strength(*physics, voxel_size=size.to("m").size[0])


def phantom(
    settings: PhantomRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """A phantom with exact labels, block by block; arguments and errors as `stack`.

    The folder gets `volume.zarr`, `labels.zarr` (uint32), `objects.csv` (one row per object), and `report.html`.
    """
    folder = RunFolder(out, settings, command="volume phantom", resume=resume, overwrite=overwrite, progress=progress)
    volume_path, labels_path = folder.file(f"volume.{settings.kind}"), folder.file(f"labels.{settings.kind}")
    size = None if settings.voxel_size is None else PixelSize.parse(settings.voxel_size, ndim=3)

    def draw(folder: RunFolder) -> None:
        look = settings.phantom
        plan = plan_phantom(look)
        facts = {"kind": "phantom", "settings": dataclasses.asdict(look), "version": f"keras_microseg {__version__}"}
        options = {"voxel_size": size, "facts": facts, "key": dataclasses.asdict(look), "resume": True}
        with (
            io.create_volume(volume_path, look.shape, look.dtype, **options) as volume,
            io.create_volume(labels_path, look.shape, np.uint32, **options) as labels,
        ):
            write_phantom(plan, volume, labels, max_ram=settings.max_ram,
                          progress=lambda done, total: _tell(folder, "draw", done, total, ""))  # fmt: skip
        table = plan.table()
        table.attrs["unit"] = "px"
        io.write_table(folder.file("objects.csv"), table, facts={"command": "volume phantom", "unit": "voxels"})

    def report(folder: RunFolder) -> None:
        image, labels = io.open_volume(volume_path), io.open_volume(labels_path)
        statistics = volume_statistics(image.data, max_ram=settings.max_ram)
        cards = {
            "objects": len(plan_phantom(settings.phantom).table()),
            "wanted volume share": settings.phantom.fraction,
        }
        _report(folder, "Phantom", image, statistics, labels=labels, cards=cards)

    run_steps(folder, [Step("draw", draw), *([Step("report", report)] if settings.report else [])])
    return volume_path


def write_phantom(
    plan: Any, volume: Any, labels: Any | None = None, *, max_ram: str | int = "2GB", progress: Any = None
) -> None:
    """Fill volumes with a planned phantom, chunk by chunk; finished chunks of a `VolumeWriter` are passed over.

    Args:
        plan: of `simulation.plan_phantom`.
        volume, labels: arrays or `VolumeWriter`s of the phantom's shape.
        max_ram: bytes to work with.
        progress: called as `progress(blocks done, blocks in all)`.
    """
    from keras_microseg.segmentation.stitching import blocks

    edge = int((parse_bytes(max_ram) / 40) ** (1 / 3))  # grey, depth, labels, noise, temporaries
    chunks = getattr(volume, "chunks", (64, 64, 64))
    size = tuple(max(c, min(edge, 256) // c * c) for c in chunks) if min(chunks[1:]) < 512 else (
        slab_thickness(volume.shape, max_ram, 40, multiple_of=chunks[0]), *volume.shape[1:])  # fmt: skip
    boxes = list(blocks(volume.shape, tuple(min(s, n) for s, n in zip(size, volume.shape, strict=True))))
    for number, box in enumerate(boxes):
        if not (hasattr(volume, "is_done") and volume.is_done(box) and (labels is None or labels.is_done(box))):
            grey, numbers = plan.read(box)
            for out, values in ((volume, grey), (labels, numbers)):
                if out is not None and not (hasattr(out, "is_done") and out.is_done(box)):
                    out[box] = values
                    if hasattr(out, "mark_done"):
                        out.mark_done(box)
        if progress is not None:
            progress(number + 1, len(boxes))


def info(
    path: str | os.PathLike,
    *,
    statistics: bool = False,
    report_path: str | os.PathLike | None = None,
    labels_path: str | os.PathLike | None = None,
    max_ram: str = "1GB",
    **options: Any,
) -> dict[str, Any]:
    """What a volume is, in words and numbers.

    Args:
        path: the volume.
        statistics: read all voxels too.
        report_path: write a page with views, histogram and, with `labels_path`, a turning 3D view.
        labels_path: labels or mask of the same shape.
        max_ram: bytes to work with.
        options: of `io.open_volume`.

    Returns:
        Names and values, in reading order.
    """
    from keras_microseg.report.volumes import volume_facts, volume_sections

    image = io.open_volume(path, **{"gaps": "report", **options})
    facts = volume_facts(image)
    facts["Size in memory"] = _memory_size(image)
    for number, text in enumerate(image.metadata.get("warnings", []), start=1):
        facts[f"Note {number}"] = text
    if not statistics and report_path is None:
        return facts
    found = volume_statistics(image.data, max_ram=max_ram)
    facts.update(
        {"Finite voxels": found.count, "NaN or infinite": found.num_nonfinite, "Mean": found.mean,
         "Standard deviation": found.std, "Smallest": found.minimum, "Largest": found.maximum}
    )  # fmt: skip
    facts.update({f"{p} % below": found.percentile(p) for p in (0.1, 1, 25, 50, 75, 99, 99.9)})
    facts["Otsu threshold"] = found.otsu(None if found.is_exact else 256)
    if report_path is not None:
        from keras_microseg.report.page import write_page

        labels = None if labels_path is None else io.open_volume(labels_path)
        marks = {"0.1 %": found.percentile(0.1), "99.9 %": found.percentile(99.9), "Otsu": facts["Otsu threshold"]}
        sections = volume_sections(image, found, labels=labels, marks=marks, facts=facts)
        write_page(report_path, f"Volume {image.name}", sections, warnings=image.metadata.get("warnings", []))
    return facts


def view(
    path: str | os.PathLike,
    results: Mapping[str, str | os.PathLike],
    out_path: str | os.PathLike,
    *,
    slices: tuple[int, ...] | None = None,
    truth: str | None = None,
    voxel_size: str | None = None,
) -> Path:
    """Write a figure of slices: the image, every result, and its errors against `truth`.

    Args:
        path: the volume.
        results: name -> labels, mask or probability map of the same shape.
        out_path: the PNG.
        slices: true slice numbers; default four, evenly spread.
        truth: name among `results`.
        voxel_size: of the volume, for the scale bar; default from the file.
    """
    from keras_microseg.report.overlays import write_picture
    from keras_microseg.report.volumes import comparison_rows

    if truth is not None:
        check_choice("truth", truth, list(results))
    image = io.open_volume(path, gaps="report", voxel_size=voxel_size)
    opened = {name: io.open_volume(result, gaps="report") for name, result in results.items()}
    write_picture(out_path, comparison_rows(image, opened, slices=slices, truth=truth).pixels)
    return Path(out_path)


def _memory_size(image: Image) -> str:
    """Bytes of all voxels, for reading."""
    from keras_microseg.checks import format_bytes

    return format_bytes(float(np.prod(image.shape, dtype=np.float64)) * image.dtype.itemsize)


def _open(source: str, settings: Any, **options: Any) -> Image:
    return io.open_volume(source, dataset=settings.dataset, voxel_size=settings.voxel_size, **options)


def _lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("max_ram", "report")}


def _chunks(thickness: int, length: int) -> tuple[int, int, int]:
    """Chunks no deeper than a slab, so that every chunk is written once."""
    deepest, *others = io.volume_writer.CHUNKS
    return deepest if thickness >= min(deepest, length) else 2 ** int(np.log2(thickness)), *others


def _tell(folder: RunFolder, step: str, done: int, total: int, item: str) -> None:
    if folder.progress:
        folder.progress(step, done, total, item)


def _report(
    folder: RunFolder,
    title: str,
    image: Image,
    statistics: VolumeStatistics,
    *,
    labels: Image | None = None,
    marks: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    cards: Mapping[str, Any] | None = None,
    warnings: tuple[str, ...] | list[str] = (),
    outlines: str = "labels",
) -> None:
    from keras_microseg.report.page import write_page
    from keras_microseg.report.volumes import volume_sections

    sections = volume_sections(image, statistics, labels=labels, marks=marks, facts=facts, outlines=outlines)
    notes = [*warnings, *image.metadata.get("warnings", [])]
    if image.pixel_size is None:
        notes.append("The voxel size is unknown; lengths are in voxels (px).")
    subtitle = f"{image.name} \u00b7 {folder.manifest['package']}"
    write_page(folder.file("report.html"), title, sections, subtitle=subtitle, cards=cards, warnings=notes)
