"""`keras-microseg volume`: X-ray tomography volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.cli.shared import (
    Backend,
    Group,
    Out,
    Overwrite,
    Resume,
    Seed,
    examples,
    open_console,
    show_progress,
    use_backend,
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
    phase_from: Annotated[
        str | None,
        typer.Option(
            help="Take a from keV, sample-detector distance in m, delta/beta, like 27.4,0.06,500; needs a voxel size."
        ),
    ] = None,
    sigma: Annotated[float, typer.Option(help="Gaussian smoothing, voxels.")] = 0.0,
    clahe: Annotated[bool, typer.Option("--clahe/--no-clahe", help="Equalize the contrast first.")] = True,
    clip_limit: Annotated[float, typer.Option(help="Of CLAHE; higher gives more contrast.")] = 0.01,
    threshold: Annotated[str, typer.Option(help="'otsu' or a grey value.")] = "otsu",
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
        threshold=_number_or(threshold, "otsu"), classes=classes,
        keep_classes=None if keep_classes is None else tuple(_whole(part) for part in keep_classes.split(",")),
        invert=invert, region=_region(region), centre_square=centre_square,
        erosion=erosion, dilation=dilation, opening=opening, closing=closing,
        fill=tuple(part.strip() for part in fill.split(",") if part.strip()), min_size=min_size,
    )  # fmt: skip
    settings = prepare.MaskRun(source, how, _physics(phase_from), kind, voxel_size, dataset, max_ram, report)
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


@app.command(
    epilog=examples(
        "keras-microseg volume train VOLUME LABELS --out MODEL --epochs 30",
        "keras-microseg volume train scan.tif mask.tif --labels-are mask --labelled 40,120,200 --out MODEL",
        "keras-microseg volume train scan.tif mask.tif --labels-are mask --architecture vfp_2level --patch 10x256x256 "
        "--out MODEL",
    )
)
def train(
    source: Source,
    labels: Annotated[str, typer.Argument(help="Labels or mask of the same shape.", metavar="LABELS")],
    out: Out,
    labels_are: Annotated[
        str, typer.Option(help="'instances' (numbered objects), 'mask' (0 and others), or 'classes' (0, 1, ...).")
    ] = "instances",
    architecture: Annotated[str, typer.Option(help="default, large, vfp_2level, vfp_4level or 2.5d.")] = "default",
    patch: Annotated[str, typer.Option(help="Voxels z x y x x of the training patches, or one number.")] = "64",
    labelled: Annotated[
        str | None, typer.Option(help="Annotated slices, like 40,120,200 (counted from 0); others are ignored.")
    ] = None,
    ignore: Annotated[int | None, typer.Option(help="Label of voxels without annotation.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes of --steps batches.")] = 30,
    steps: Annotated[int, typer.Option(help="Batches per epoch.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Patches per batch and device.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    validation: Annotated[float, typer.Option(help="Share of the slices for validation, one block; 0 = none.")] = 0.2,
    gap: Annotated[int | None, typer.Option(help="Slices between both parts. Default: the receptive field.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without improvement.")] = None,
    loss: Annotated[str, typer.Option(help="auto, dice, dice_crossentropy, focal_tversky or crossentropy.")] = "auto",
    deep_supervision: Annotated[int, typer.Option(help="Coarser levels that learn too.")] = 0,
    augment: Annotated[float, typer.Option(help="Strength of the augmentation, 0 to 2.")] = 1.0,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="Compute in bfloat16.")] = False,
    devices: Annotated[int, typer.Option(help="Devices that share every batch.")] = 1,
    epoch_files: Annotated[bool, typer.Option("--epoch-files", help="Write a JSON file per epoch.")] = False,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a 3D or 2.5D network on a volume and its labels or (automatic) mask."""
    from keras_microseg.workflows import tomography_train as work

    use_backend(backend)
    settings = work.TrainVolumeSettings(
        source, labels, labels_are, architecture, patch=_shape(patch), labelled=_numbers(labelled), ignore=ignore,
        epochs=epochs, steps_per_epoch=steps, batch_size=batch_size, learning_rate=learning_rate,
        validation=validation, gap=gap, patience=patience, loss=loss, deep_supervision=deep_supervision,
        augment=augment, mixed_precision=mixed_precision, devices=devices, epoch_files=epoch_files, seed=seed,
    )  # fmt: skip
    with show_progress() as progress:
        trained = work.train_volume(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"Model: {trained.model_path}")
    typer.echo(", ".join(f"{name} {value:.4f}" for name, value in trained.scores.items()))


@app.command(name="train-spheres", epilog=examples("keras-microseg volume train-spheres --out MODEL"))
def train_spheres(out: Out, backend: Backend = None, resume: Resume = False) -> None:
    """Train the shipped model of spheres anew, on simulated phantoms (about 10 minutes on a CPU core)."""
    use_backend(backend)
    from keras_microseg.workflows import sphere_model

    typer.echo(f"Model: {sphere_model.train_spheres(out, resume=resume)}")


@app.command(
    epilog=examples(
        "keras-microseg volume predict VOLUME --out MAPS --diameter 62",
        "keras-microseg volume predict VOLUME --out MAPS --model MODEL/model.keras --flips 8 --spread --max-ram 4GB",
    )
)
def predict(
    source: Source,
    out: Out,
    model: Annotated[str, typer.Option(help="A model file, or 'spheres3d' (shipped).")] = "spheres3d",
    diameter: Annotated[
        float | None, typer.Option(help="Typical diameter of the objects, voxels: sets the working scale.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="The working scale itself, like 0.25.")] = None,
    maps: Annotated[str | None, typer.Option(help="Maps to write, like foreground,distance. Default: all.")] = None,
    flips: Annotated[int, typer.Option(help="Average over 4, 8 or 16 mirrored and turned copies; 0 = none.")] = 0,
    spread: Annotated[bool, typer.Option("--spread", help="Also write how far the copies disagree.")] = False,
    planes: Annotated[int, typer.Option(help="2D and 2.5D models: 1, or 3 to average over z, y and x.")] = 1,
    blend: Annotated[str, typer.Option(help="How windows are joined: linear, hann, gaussian or none.")] = "linear",
    tile: Annotated[str | None, typer.Option(help="Window of the network, voxels. Default: by --max-ram.")] = None,
    halo: Annotated[str | None, typer.Option(help="Voxels that windows share on each side.")] = None,
    grey: Annotated[
        str, typer.Option(help="Grey scaling: 'volume' (by the model's rule, from this volume) or 'model'.")
    ] = "volume",
    precision: Annotated[str, typer.Option(help="uint8 (0..255 for 0..1) or float16.")] = "uint8",
    kind: Kind = "zarr",
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    report: Report = True,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Probability maps of a volume of any size with a trained network."""
    from keras_microseg.workflows import tomography_predict as work

    use_backend(backend)
    settings = work.PredictVolumeSettings(
        source, model, diameter, scale, None if maps is None else tuple(part.strip() for part in maps.split(",")),
        flips, spread, planes, blend, None if tile is None else _shape(tile), None if halo is None else _shape(halo),
        grey, precision, kind, voxel_size, dataset, max_ram, report,
    )  # fmt: skip
    with show_progress() as progress:
        paths = work.predict(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for name, path in paths.items():
        typer.echo(f"{name}: {path}")
    if report:
        typer.echo(f"Report: {out / 'report.html'}")


@app.command(
    epilog=examples(
        "keras-microseg volume run SLICES --out RESULT --diameter 62 --voxel-size 0.65um",
        "keras-microseg volume run scan.tif --model train --labels mask.tif --epochs 20 --out RESULT",
    )
)
def run(
    source: Source,
    out: Out,
    model: Annotated[
        str, typer.Option(help="'spheres3d' (shipped), a model file, or 'train' for one trained on this volume.")
    ] = "spheres3d",
    labels: Annotated[
        str | None, typer.Option(help="Labels or mask to train on. Default: an automatic mask (pseudo-labels).")
    ] = None,
    labels_are: Annotated[str, typer.Option(help="instances or mask.")] = "mask",
    diameter: Annotated[float | None, typer.Option(help="Typical diameter of the objects, voxels.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Probability above which a voxel belongs to an object. Default: the model's.")
    ] = None,
    separate: Annotated[bool, typer.Option("--separate/--joined", help="Cut touching objects apart.")] = True,
    min_size: Annotated[int | None, typer.Option(help="Smallest object, voxels. Default: by --diameter.")] = None,
    phase_filter: Annotated[float | None, typer.Option(help="Of the automatic mask, see volume mask.")] = None,
    fill: Annotated[str, typer.Option(help="Of the automatic mask: any of z,y,x and 3d.")] = "",
    patch: Annotated[str, typer.Option(help="Training patches, like 32x64x64.")] = "64",
    epochs: Annotated[int, typer.Option(help="Of the training.")] = 30,
    steps: Annotated[int, typer.Option(help="Batches per epoch of the training.")] = 50,
    validation: Annotated[float, typer.Option(help="Share of the slices for validation; 0 = none.")] = 0.2,
    gap: Annotated[int | None, typer.Option(help="Slices between both parts. Default: the receptive field.")] = None,
    flips: Annotated[int, typer.Option(help="Copies to average over: 0, 4, 8 or 16.")] = 0,
    voxel_size: VoxelSize = None,
    dataset: Dataset = None,
    max_ram: MaxRam = "2GB",
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole path: stack, mask, train, predict, label, measure, report (what is not needed is left out)."""
    from keras_microseg.segmentation.pseudo_labels import MaskSettings
    from keras_microseg.workflows import tomography as work

    use_backend(backend)
    holes = tuple(part.strip() for part in fill.split(",") if part.strip())
    settings = work.TomographySettings(
        source, model, labels, labels_are, diameter, MaskSettings(phase_filter=phase_filter, fill=holes),
        {"patch": _shape(patch), "epochs": epochs, "steps_per_epoch": steps, "validation": validation, "gap": gap},
        {"flips": flips}, threshold, separate,
        min_size, voxel_size, dataset, max_ram,
    )  # fmt: skip
    with show_progress() as progress:
        work.run(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"Objects: {out / 'tables' / 'particles.csv'}\nReport: {out / 'report.html'}")


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
    wanted = None if slices is None else tuple(_whole(part) for part in slices.split(","))
    typer.echo(f"Written: {prepare.view(source, named, out, slices=wanted, truth=truth, voxel_size=voxel_size)}")


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

    level = threshold if threshold in (None, "otsu", "halfway", "kmeans") else _number_or(threshold, "otsu")
    settings = work.LabelRun(
        source, method, distance, level, dark, sigma, merge_ratio, min_size, connectivity, halo,
        LinkSettings(min_iou=min_iou, max_gap=max_gap, min_slices=min_slices), kind, voxel_size, dataset, max_ram,
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
    """Score a label volume against the truth: voxels and objects. Needs no keras."""
    from keras_microseg.workflows import tomography_measure as work

    scores = work.evaluate(predicted, truth, out, threshold=threshold, min_size=min_size, max_ram=max_ram)
    typer.echo(f"{scores.true_objects} true and {scores.found_objects} found objects")
    for name, value in {**scores.objects, **{f"voxel {k}": v for k, v in scores.voxels.items()}}.items():
        typer.echo(f"  {name}: {value:.4g}")
    typer.echo(f"  average precision: {scores.average_precision:.4g}")
    typer.echo(f"  split {scores.split}, merged {scores.merged}, missed {scores.missed}, spurious {scores.spurious}")


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


def _region(text: str | None) -> str | float | tuple[tuple[float, ...], ...] | None:
    """'circle', a share, or corners of a polygon."""
    if text is None or "," not in text:
        return None if text is None else _number_or(text, "circle")
    corners = tuple(_floats(part) for part in text.replace(";", " ").split())
    if any(len(corner) != 2 for corner in corners):
        raise typer.BadParameter(f"write corners as 'y,x y,x y,x'. Received: {text!r}", param_hint="--region")
    return corners


def _physics(text: str | None) -> tuple[float, ...] | None:
    values = None if text is None else _floats(text)
    if values is not None and len(values) != 3:
        raise typer.BadParameter(f"write keV,metres,delta/beta. Received: {text!r}", param_hint="--phase-from")
    return values


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"write numbers with commas. Received: {text!r}") from None


def _whole(text: str) -> int:
    if not text.strip().isdigit():
        raise typer.BadParameter(f"write whole numbers with commas. Received: {text!r}")
    return int(text)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(_whole(part) for part in text.split(","))


def _shape(text: str) -> tuple[int, ...] | int:
    parts = [_whole(part) for part in text.lower().replace(",", "x").split("x")]
    return parts[0] if len(parts) == 1 else tuple(parts)
