"""`keras-microseg volume`: X-ray tomography volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.cli.shared import Group, Out, Overwrite, Resume, Seed, examples, open_console, show_progress

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
    _say(path, out, report)


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
    sigma: Annotated[float, typer.Option(help="Gaussian smoothing, voxels.")] = 0.0,
    clahe: Annotated[bool, typer.Option("--clahe/--no-clahe", help="Equalize the contrast first.")] = True,
    threshold: Annotated[str, typer.Option(help="'otsu' or a grey value.")] = "otsu",
    classes: Annotated[int, typer.Option(help="2, or 3 to 5 for multi-Otsu.")] = 2,
    keep_classes: Annotated[str | None, typer.Option(help="Classes that are object, like 1,2 (0 = darkest).")] = None,
    invert: Annotated[str, typer.Option(help="'slices' (those more than half white), 'always', 'never'.")] = "slices",
    region: Annotated[str | None, typer.Option(help="'circle' (found), or its share of the width like 0.95.")] = None,
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
        phase_filter=phase_filter, sigma=sigma, clahe=clahe, threshold=_number_or(threshold, "otsu"), classes=classes,
        keep_classes=None if keep_classes is None else tuple(_whole(part) for part in keep_classes.split(",")),
        invert=invert, region=None if region is None else _number_or(region, "circle"), centre_square=centre_square,
        erosion=erosion, dilation=dilation, opening=opening, closing=closing,
        fill=tuple(part.strip() for part in fill.split(",") if part.strip()), min_size=min_size,
    )  # fmt: skip
    settings = prepare.MaskRun(source, how, kind, voxel_size, dataset, max_ram, report)
    with show_progress() as progress:
        path = prepare.mask(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    _say(path, out, report)


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
        look, kind=objects, shape=_shape(size), fraction=fraction, diameter=diameter, spread=spread,
        clustering=clustering, sample=sample, tilt=tilt, seed=seed, **changes,
    )  # fmt: skip
    settings = prepare.PhantomRun(chosen, kind, voxel_size, max_ram, report)
    with show_progress() as progress:
        path = prepare.phantom(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    _say(path, out, report)


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


def _say(path: Path, out: Path, report: bool) -> None:
    typer.echo(f"Written: {path}")
    if report:
        typer.echo(f"Report: {out / 'report.html'}")


def _number_or(text: str, word: str) -> str | float:
    """The number that `text` is, or `word` where it is that word."""
    if text == word:
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"write '{word}' or a number. Received: {text!r}") from None


def _whole(text: str) -> int:
    if not text.strip().isdigit():
        raise typer.BadParameter(f"write whole numbers with commas. Received: {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...] | int:
    parts = [_whole(part) for part in text.lower().replace(",", "x").split("x")]
    return parts[0] if len(parts) == 1 else tuple(parts)
