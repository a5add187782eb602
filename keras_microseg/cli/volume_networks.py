"""Commands of `keras-microseg volume ...` that need a network: train, train-spheres, predict, run."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from keras_microseg.checks import check_choice
from keras_microseg.cli.shared import (
    Backend,
    Out,
    Overwrite,
    Resume,
    Seed,
    examples,
    parse_changes,
    show_progress,
    use_backend,
)
from keras_microseg.cli.volume import (
    Dataset,
    Kind,
    MaxRam,
    Report,
    Source,
    VoxelSize,
    parse_numbers,
    parse_shape,
)

app = typer.Typer()

Preset = Annotated[
    str,
    typer.Option(help="Training: fast (minutes on a CPU), standard (half an hour), gpu, paper (as published)."),
]
Patch = Annotated[
    str | None, typer.Option(help="Voxels z x y x x of the training patches, or one number. Default: the preset's.")
]
Epochs = Annotated[int | None, typer.Option(help="Passes of --steps batches. Default: the preset's.")]
Steps = Annotated[int | None, typer.Option(help="Batches per epoch. Default: the preset's.")]


@app.command(
    epilog=examples(
        "keras-microseg volume train VOLUME LABELS --out MODEL --epochs 30",
        "keras-microseg volume train scan.tif mask.tif --labels-are mask --labelled 40,120,200 --out MODEL",
        "keras-microseg volume train a.tif a_labels.tif --also b.tif=b_labels.tif --held c.tif=c_lab.tif --out MODEL",
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
    preset: Preset = "standard",
    architecture: Annotated[
        str | None, typer.Option(help="default, large, vfp_2level, vfp_4level or 2.5d. Default: the preset's.")
    ] = None,
    patch: Patch = None,
    also: Annotated[
        list[str] | None, typer.Option(help="A further pair VOLUME=LABELS to train on; may be repeated.")
    ] = None,
    held: Annotated[
        list[str] | None, typer.Option(help="A pair VOLUME=LABELS for validation alone; may be repeated.")
    ] = None,
    labelled: Annotated[
        str | None, typer.Option(help="Annotated slices, like 40,120,200 (counted from 0); others are ignored.")
    ] = None,
    ignore: Annotated[int | None, typer.Option(help="Label of voxels without annotation.")] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches per batch and device. Default: the preset's.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the slices for validation, one block; 0 = none. Default: 0.2.")
    ] = None,
    gap: Annotated[int | None, typer.Option(help="Slices between both parts. Default: the receptive field.")] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Devices that share every batch; with several, --set norm=group gives the same on any number."
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change any setting, like loss=dice, augment=0.5, learning_rate=1e-3, patience=5."),
    ] = None,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a 3D or 2.5D network on a volume and its labels or (automatic) mask."""
    from keras_microseg.workflows import tomography_train as work
    from keras_microseg.workflows.tomography_settings import TrainVolumeSettings

    use_backend(backend)
    given = {
        "architecture": architecture, "patch": None if patch is None else parse_shape(patch),
        "labelled": parse_numbers(labelled), "ignore": ignore, "epochs": epochs, "steps_per_epoch": steps,
        "batch_size": batch_size, "validation": validation, "gap": gap, "devices": devices,
        "held": tuple(map(_pair, held)) if held else None,
    }  # fmt: skip
    changes = {**_given(given), **parse_changes(change or [])}
    sources = (source, labels) if not also else tuple(zip((source, labels), *map(_pair, also), strict=True))
    settings = TrainVolumeSettings.from_preset(preset, *sources, labels_are=labels_are, seed=seed, **changes)
    with show_progress() as progress:
        trained = work.train_volume(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"Model: {trained.model_path}")
    if not any(name.startswith("val_") for name in trained.scores) and validation != 0:
        typer.echo("Note: too few slices for a validation part of its own; these scores are of the training.", err=True)
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
        flips, spread, planes, blend, None if tile is None else parse_shape(tile),
        None if halo is None else parse_shape(halo), grey, precision, kind, voxel_size, dataset, max_ram, report,
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
    preset: Preset = "fast",
    patch: Patch = None,
    epochs: Epochs = None,
    steps: Steps = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change any setting of a step, like train.validation=0, mask.clahe=False, mask.sigma=1, "
            "mask.fill=('3d',), mask.phase_filter=12 or predict.spread=True.",
        ),
    ] = None,
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
    from keras_microseg.workflows.steps import read_json

    use_backend(backend)
    parts: dict[str, dict[str, Any]] = {
        "train": _given(
            {"patch": None if patch is None else parse_shape(patch), "epochs": epochs, "steps_per_epoch": steps}
        ),
        "predict": {"flips": flips},
        "mask": {},
    }
    for name, value in parse_changes(change or []).items():
        part, _, rest = name.partition(".")
        if part not in parts or not rest:
            raise typer.BadParameter(
                f"write train., mask. or predict. before it. Received: {name!r}", param_hint="--set"
            )
        parts[part][rest] = value
    known = [field.name for field in dataclasses.fields(MaskSettings)]
    for name in parts["mask"]:
        check_choice("--set mask", name, known)
    settings = work.TomographySettings(
        source, model, labels, labels_are, diameter, MaskSettings(**parts["mask"]), preset, parts["train"],
        parts["predict"], threshold, separate, min_size, voxel_size, dataset, max_ram,
    )  # fmt: skip
    with show_progress() as progress:
        work.run(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for name, value in work.result_rows(read_json(out / "tables" / "volume.json")).items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"Table: {out / 'tables' / 'particles.csv'}\nReport: {out / 'report.html'}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were used."""
    return {name: value for name, value in options.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    """'scan.tif=labels.tif' -> both names."""
    volume, sign, labels = text.partition("=")
    if not sign or not volume or not labels:
        raise typer.BadParameter(f"write VOLUME=LABELS. Received: {text!r}")
    return volume, labels
