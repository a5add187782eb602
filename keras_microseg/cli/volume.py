"""`keras-microseg volume`: X-ray tomography volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.checks import check_choice
from keras_microseg.cli.shared import (
    Group,
    Out,
    Overwrite,
    Resume,
    Seed,
    examples,
    open_console,
    parse_changes,
    show_progress,
)

app = typer.Typer(
    name="volume",
    cls=Group,
    help="X-ray tomography volumes: stack, mask, train, predict, label, measure.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Source = Annotated[
    str,
    typer.Argument(
        help="Folder or pattern of slices, TIFF stack, HDF5, Zarr, .npy, raw voxels with a header, or a .zip of these.",
        metavar="VOLUME",
    ),
]
VoxelSize = Annotated[
    str | None,
    typer.Option("--voxel-size", "-p", help='Edge lengths like 0.65um or "2 x 0.65 x 0.65 um" (z, y, x). '
                 "Default: from the file."),
]  # fmt: skip
Dataset = Annotated[str | None, typer.Option(help="Name of the array inside HDF5, Zarr or zip.")]
MaxRam = Annotated[str, typer.Option("--max-ram", help="Memory to work with, like 2GB.")]
Kind = Annotated[str, typer.Option("--kind", help="Output: zarr, tif (BigTIFF above 4 GB) or npy.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html with views and a 3D view.")]


@app.command(
    epilog=examples(
        "keras-microseg volume info scan.h5",
        "keras-microseg volume info STACK/volume.zarr --statistics --page volume.html --labels LABELS/labels.zarr",
    )
)
def info(
    source: Source,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Read all voxels: extremes, percentiles, Otsu.")
    ] = False,
    page: Annotated[Path | None, typer.Option(help="Write an HTML page with views and histogram.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels or mask to draw on the page, with a 3D view.")] = None,
    dataset: Dataset = None,
    voxel_size: VoxelSize = None,
    max_ram: MaxRam = "1GB",
) -> None:
    """Say what a volume is: size, type, slice numbers, voxel size, and more on request."""
    from keras_microseg.workflows import tomography_prepare as prepare

    facts = prepare.info(
        source, statistics=statistics, report_path=page, labels_path=labels, max_ram=max_ram, dataset=dataset,
        voxel_size=voxel_size,
    )  # fmt: skip
    console = open_console(stdout=True)
    for name, value in facts.items():
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        console.print(f"{name + ':':<20} {text}", highlight=False, markup=False, soft_wrap=True)
    if page is not None:
        typer.echo(f"Page: {page}")


@app.command(
    epilog=examples(
        "keras-microseg volume stack SLICES --out STACK --voxel-size 0.65um",
        "keras-microseg volume stack 'SLICES/*_rec*.bmp' --out STACK --start 100 --stop 300 --kind tif",
        "keras-microseg volume stack scan.h5 --dataset exchange/data --out STACK --nan zero",
    )
)
def stack(
    source: Source,
    out: Out,
    start: Annotated[int, typer.Option(help="First slice, counted from 0.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Slice after the last one. Default: all.")] = None,
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    axes: Annotated[
        str | None, typer.Option(help="Letters of the stored axes, like YXZ, when they are not ZYX.")
    ] = None,
    allow_gaps: Annotated[bool, typer.Option("--allow-gaps", help="Accept missing slice numbers.")] = False,
    nan: Annotated[str, typer.Option(help="NaN voxels: 'error', or 'zero' to replace them by 0.")] = "error",
    max_ram: MaxRam = "2GB",
    report: Report = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Join slices to one volume, or change the storage of one, with bounded memory."""
    from keras_microseg.workflows import tomography_prepare as prepare

    settings = prepare.StackSettings(
        source, start, stop, kind, voxel_size, dataset, axes, "report" if allow_gaps else "error", nan, max_ram, report
    )
    with show_progress() as progress:
        path = prepare.stack(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_written(path, out, report)


@app.command(
    epilog=examples(
        "keras-microseg volume mask STACK/volume.zarr --out MASK",
        "keras-microseg volume mask scan.tif --out MASK --centre-square 1800",
        "keras-microseg volume mask scan.tif --out MASK --no-clahe --phase-filter 12 --fill 3d --min-size 500",
    )
)
def mask(
    source: Source,
    out: Out,
    phase_filter: Annotated[
        float | None, typer.Option(help="Strength a of the low-pass 1/(1 + a k2), voxels^2: fills phase-contrast rims.")
    ] = None,
    phase_from: Annotated[
        str | None,
        typer.Option(
            help="Take a from keV, sample-detector distance in m, delta/beta, like 27.4,0.06,500; needs a voxel size."
        ),
    ] = None,
    sigma: Annotated[float, typer.Option(help="Gaussian smoothing, voxels.")] = 0.0,
    clahe: Annotated[bool, typer.Option("--clahe/--no-clahe", help="Equalize the contrast first.")] = True,
    clip_limit: Annotated[float, typer.Option(help="Of CLAHE; higher gives more contrast.")] = 0.01,
    threshold: Annotated[str, typer.Option(help="'otsu', 'halfway' (with --no-clahe) or a grey value.")] = "otsu",
    classes: Annotated[int, typer.Option(help="2, or 3 to 5 for multi-Otsu.")] = 2,
    keep_classes: Annotated[str | None, typer.Option(help="Classes that are object, like 1,2 (0 = darkest).")] = None,
    invert: Annotated[str, typer.Option(help="'slices' (those more than half white), 'always', 'never'.")] = "slices",
    region: Annotated[
        str | None,
        typer.Option(help="'circle' (found), its share of the width like 0.95, or corners 'y,x y,x y,x' of a polygon."),
    ] = None,
    centre_square: Annotated[int | None, typer.Option(help="Side of a centred square to keep, px.")] = None,
    erosion: Annotated[int, typer.Option(help="Radius, voxels.")] = 0,
    dilation: Annotated[int, typer.Option(help="Radius, voxels.")] = 0,
    opening: Annotated[int, typer.Option(help="Radius, voxels.")] = 0,
    closing: Annotated[int, typer.Option(help="Radius, voxels.")] = 0,
    fill: Annotated[str, typer.Option(help="Fill holes: any of z,y,x (slices across that axis) and 3d.")] = "",
    min_size: Annotated[int, typer.Option(help="Leave out parts of fewer voxels.")] = 0,
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    report: Report = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make an automatic mask (pseudo-labels) by CLAHE and Otsu, with options to make it usable."""
    from keras_microseg.workflows import tomography_prepare as prepare

    how = prepare.MaskSettings(
        phase_filter=phase_filter, sigma=sigma, clahe=clahe, clip_limit=clip_limit,
        threshold=number_or(threshold, "otsu", "halfway"), classes=classes,
        keep_classes=None if keep_classes is None else tuple(parse_whole(part) for part in keep_classes.split(",")),
        invert=invert, region=_region(region), centre_square=centre_square,
        erosion=erosion, dilation=dilation, opening=opening, closing=closing,
        fill=tuple(part.strip() for part in fill.split(",") if part.strip()), min_size=min_size,
    )  # fmt: skip
    settings = prepare.MaskRun(source, how, _physics(phase_from), kind, voxel_size, dataset, max_ram, report)
    with show_progress() as progress:
        path = prepare.mask(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_written(path, out, report)


@app.command(
    epilog=examples(
        "keras-microseg volume baseline scan.zarr --out KMEANS",
        "keras-microseg volume baseline scan.zarr --method otsu --classes 3 --out OTSU",
        "keras-microseg volume baseline scan.zarr --method forest --labels some.tif --labelled 40,120 --out FOREST",
        "keras-microseg volume baseline scan.zarr --method coherence --set window=4 --out COHERENCE",
    )
)
def baseline(
    source: Source,
    out: Out,
    method: Annotated[
        str, typer.Option(help="kmeans, otsu, halfway, forest, gradient, coherence or depth (as older scripts).")
    ] = "kmeans",
    classes: Annotated[int, typer.Option(help="Number of classes, for kmeans and otsu.")] = 2,
    labels: Annotated[
        str | None, typer.Option(help="For the forest: class of some voxels, 255 elsewhere; or see --labelled.")
    ] = None,
    labelled: Annotated[str | None, typer.Option(help="Slices of --labels that count, like 40,120.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change features=('smooth','z'), half_width=3, isotropic=True or window=4."),
    ] = None,
    seed: Seed = 0,
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    report: Report = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Classes of a grey volume by a classical method, slab by slab. Needs no keras."""
    from keras_microseg.workflows import tomography_baseline as work

    changes = parse_changes(change or [])
    for name in changes:
        check_choice("--set", name, ("features", "half_width", "isotropic", "window"))
    settings = work.BaselineRun(
        source, method, classes, labels=labels, labelled=parse_numbers(labelled), seed=seed, kind=kind,
        voxel_size=voxel_size, dataset=dataset, max_ram=max_ram, report=report, **changes,
    )  # fmt: skip
    with show_progress() as progress:
        path = work.baseline(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_written(path, out, report)


@app.command(
    epilog=examples(
        "keras-microseg volume label mask.tif --out LABELS",
        "keras-microseg volume label scan.zarr --threshold otsu --sigma 2 --min-size 100 --out LABELS --max-ram 4GB",
        "keras-microseg volume label MAPS/foreground.zarr --method maps --distance MAPS/distance.zarr --out LABELS",
        "keras-microseg volume label SLICES --method slices --max-gap 2 --out LABELS",
    )
)
def label(
    source: Source,
    out: Out,
    method: Annotated[
        str,
        typer.Option(help="separate (cut at necks), components, maps (of a network), slices (link labelled slices)."),
    ] = "separate",
    distance: Annotated[str | None, typer.Option(help="Distance map, for --method maps.")] = None,
    threshold: Annotated[
        str | None,
        typer.Option(help="Grey value, 'otsu', 'halfway', 'kmeans'. Default: 0, or 0.5 for maps."),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Objects are darker than the threshold.")] = False,
    sigma: Annotated[float, typer.Option(help="Smoothing of the distance map, voxels; an eighth of the radius.")] = 2.0,
    merge_ratio: Annotated[float, typer.Option(help="Parts are joined when neck / narrower part exceeds it.")] = 0.78,
    min_size: Annotated[int, typer.Option(help="Smaller parts go to their neighbour or vanish, voxels.")] = 0,
    connectivity: Annotated[int, typer.Option(help="6 or 26 neighbours, for --method components.")] = 26,
    halo: Annotated[int, typer.Option(help="Context of a block: more than the radius of the largest object.")] = 48,
    min_iou: Annotated[float, typer.Option(help="Slices: IoU above which objects are one.")] = 0.2,
    max_gap: Annotated[int, typer.Option(help="Slices: how many an object may miss.")] = 2,
    min_slices: Annotated[int, typer.Option(help="Slices: shorter objects vanish.")] = 1,
    neck: Annotated[
        float, typer.Option(help="Slices: cut where the area falls below this share of both maxima; 0 = never.")
    ] = 0.65,
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Number the objects of a mask, grey volume or probability map, block by block. Needs no keras."""
    from keras_microseg.segmentation.linking import LinkSettings
    from keras_microseg.workflows import tomography_measure as work

    level = None if threshold is None else number_or(threshold, "otsu", "halfway", "kmeans")
    settings = work.LabelRun(
        source, method, distance, level, dark, sigma, merge_ratio, min_size, connectivity, halo,
        LinkSettings(min_iou=min_iou, max_gap=max_gap, neck=neck, min_slices=min_slices), kind, voxel_size, dataset,
        max_ram,
    )  # fmt: skip
    with show_progress() as progress:
        path = work.label(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"Written: {path}")


@app.command(
    epilog=examples(
        "keras-microseg volume measure LABELS/labels.zarr --out TABLES --voxel-size 0.65um",
        "keras-microseg volume measure LABELS/labels.zarr --intensity scan.zarr --structure --max-ram 8GB --out TABLES",
    )
)
def measure(
    source: Source,
    out: Out,
    intensity: Annotated[str | None, typer.Option(help="Grey volume of the same shape.")] = None,
    particles: Annotated[bool, typer.Option("--particles/--no-particles", help="One row per object.")] = True,
    phases: Annotated[
        bool, typer.Option("--phases/--no-phases", help="Fraction, surface, connectivity, representative volume.")
    ] = True,
    structure: Annotated[
        bool, typer.Option("--structure", help="Two-point function, local thickness: in memory.")
    ] = False,
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure the objects and the phase of a label volume. Needs no keras."""
    from keras_microseg.workflows import tomography_measure as work

    settings = work.MeasureRun(
        source, intensity, particles, phases, structure, None, voxel_size, dataset, max_ram
    )  # fmt: skip
    with show_progress() as progress:
        facts = work.measure(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    if "particles" in facts:
        typer.echo(f"{facts['particles']} particles")
    if "fraction" in facts:
        share = facts["fraction"]
        typer.echo(f"Volume fraction {share['value']:.4f} [{share['low']:.4f}, {share['high']:.4f}]")
    typer.echo(f"Tables: {out}")


@app.command(epilog=examples("keras-microseg volume evaluate LABELS/labels.zarr truth.zarr --out scores.json"))
def evaluate(
    predicted: Annotated[str, typer.Argument(help="Label volume.")],
    truth: Annotated[str, typer.Argument(help="True label volume.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the scores to this .json file.")] = None,
    threshold: Annotated[float, typer.Option(help="IoU above which two objects are the same one.")] = 0.5,
    min_size: Annotated[int, typer.Option(help="Ignore objects of fewer voxels.")] = 0,
    max_ram: MaxRam = "8GB",
) -> None:
    """Score a label volume against the truth: voxels, surfaces and objects. Needs no keras."""
    from keras_microseg.workflows import tomography_measure as work

    scores = work.evaluate(predicted, truth, out, threshold=threshold, min_size=min_size, max_ram=max_ram)
    typer.echo(f"{scores.true_objects} true and {scores.found_objects} found objects")
    for name, value in {**scores.objects, **{f"voxel {k}": v for k, v in scores.voxels.items()}}.items():
        typer.echo(f"  {name}: {value:.4g}")
    for name, value in scores.surface.items():
        unit = "" if name == "surface_dice" else f" {scores.unit}"
        typer.echo(f"  {name.replace('_', ' ')}: {value:.4g}{unit}")
    typer.echo(f"  average precision: {scores.average_precision:.4g}")
    typer.echo(f"  split {scores.split}, merged {scores.merged}, missed {scores.missed}, spurious {scores.spurious}")


@app.command(
    epilog=examples(
        "keras-microseg volume view scan.zarr --result mask=MASK/mask.zarr --out figure.png",
        "keras-microseg volume view scan.zarr --result truth=t.zarr --result net=n.zarr --truth truth --out figure.png",
    )
)
def view(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture, a .png.")],
    result: Annotated[
        list[str], typer.Option(help="name=FILE of labels, a mask or a probability map; several times for several.")
    ],
    slices: Annotated[str | None, typer.Option(help="True slice numbers with commas. Default: four.")] = None,
    truth: Annotated[str | None, typer.Option(help="Which result the others are compared with.")] = None,
    voxel_size: VoxelSize = None,
) -> None:
    """Draw slices with results below them, and where results differ from the truth."""
    from keras_microseg.workflows import tomography_prepare as prepare

    named = {}
    for text in result:
        name, found, path = text.partition("=")
        if not found or not name or not path:
            raise typer.BadParameter(f"write name=FILE. Received: {text!r}", param_hint="--result")
        named[name] = path
    wanted = None if slices is None else tuple(parse_whole(part) for part in slices.split(","))
    typer.echo(f"Written: {prepare.view(source, named, out, slices=wanted, truth=truth, voxel_size=voxel_size)}")


@app.command(
    epilog=examples(
        "keras-microseg volume phantom --out PHANTOM --fraction 0.2 --diameter 24",
        "keras-microseg volume phantom --out PHANTOM --objects grains --fraction 0.6 --size 200x256x256 --look far",
    )
)
def phantom(
    out: Out,
    objects: Annotated[str, typer.Option(help="spheres, grains or fibres.")] = "spheres",
    size: Annotated[str, typer.Option(help="Voxels z x y x x, like 128x256x256, or one number.")] = "128",
    fraction: Annotated[float, typer.Option(help="Volume share of the objects.")] = 0.2,
    diameter: Annotated[float, typer.Option(help="Mean diameter, voxels.")] = 24.0,
    spread: Annotated[float, typer.Option(help="Standard deviation of the diameter over its mean.")] = 0.05,
    clustering: Annotated[float, typer.Option(help="Share of spheres placed in contact, 0 to 1.")] = 0.0,
    look: Annotated[str | None, typer.Option(help="near, far (only rims show) or clean.")] = None,
    noise: Annotated[float | None, typer.Option(help="Standard deviation of the noise, share of full scale.")] = None,
    sample: Annotated[float | None, typer.Option(help="Side of a square sample over the width of the field.")] = None,
    tilt: Annotated[float, typer.Option(help="Turn of the square sample, degrees.")] = 0.0,
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    max_ram: MaxRam = "2GB",
    seed: Seed = 0,
    report: Report = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a phantom of spheres, grains or fibres with exactly known labels."""
    from keras_microseg.workflows import tomography_prepare as prepare

    changes = {} if noise is None else {"noise": noise}
    chosen = prepare.phantom_settings(
        look, kind=objects, shape=parse_shape(size), fraction=fraction, diameter=diameter, spread=spread,
        clustering=clustering, sample=sample, tilt=tilt, seed=seed, **changes,
    )  # fmt: skip
    settings = prepare.PhantomRun(chosen, kind, voxel_size, max_ram, report)
    with show_progress() as progress:
        path = prepare.phantom(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_written(path, out, report)


def say_written(path: Path, out: Path, report: bool) -> None:
    """Where the result and its page lie."""
    typer.echo(f"Written: {path}")
    if report:
        typer.echo(f"Report: {out / 'report.html'}")


def number_or(text: str, *words: str) -> str | float:
    """The number that `text` is, or `text` where it is one of the words."""
    if text in words:
        return text
    try:
        return float(text)
    except ValueError:
        quoted = ", ".join(repr(word) for word in words)
        raise typer.BadParameter(f"write {quoted} or a number. Received: {text!r}") from None


def _region(text: str | None) -> str | float | tuple[tuple[float, ...], ...] | None:
    """'circle', a share, or corners of a polygon."""
    if text is None or "," not in text:
        return None if text is None else number_or(text, "circle")
    corners = tuple(parse_floats(part) for part in text.replace(";", " ").split())
    if any(len(corner) != 2 for corner in corners):
        raise typer.BadParameter(f"write corners as 'y,x y,x y,x'. Received: {text!r}", param_hint="--region")
    return corners


def _physics(text: str | None) -> tuple[float, ...] | None:
    values = None if text is None else parse_floats(text)
    if values is not None and len(values) != 3:
        raise typer.BadParameter(f"write keV,metres,delta/beta. Received: {text!r}", param_hint="--phase-from")
    return values


def parse_floats(text: str) -> tuple[float, ...]:
    """'27.4,0.06' -> (27.4, 0.06)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"write numbers with commas. Received: {text!r}") from None


def parse_whole(text: str) -> int:
    """'40' -> 40, nothing else."""
    if not text.strip().isdigit():
        raise typer.BadParameter(f"write whole numbers with commas. Received: {text!r}")
    return int(text)


def parse_numbers(text: str | None) -> tuple[int, ...] | None:
    """'40,120' -> (40, 120)."""
    return None if text is None else tuple(parse_whole(part) for part in text.split(","))


def parse_shape(text: str) -> tuple[int, ...] | int:
    """'32x64x64' -> (32, 64, 64); '64' -> 64."""
    parts = [parse_whole(part) for part in text.lower().replace(",", "x").split("x")]
    return parts[0] if len(parts) == 1 else tuple(parts)
