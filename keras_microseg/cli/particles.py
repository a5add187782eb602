"""Commands of `keras-microseg particles ...` around the detector: train, detect, evaluate, convert-weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.shared import (
    Backend,
    InfoBar,
    Out,
    Overwrite,
    PixelSizeOption,
    Resume,
    Seed,
    Unit,
    examples,
    finish,
    list_failures,
    parse_changes,
    parse_row,
    show_progress,
    use_backend,
)

app = typer.Typer(no_args_is_help=True, help="Particles as instances: Mask R-CNN, linking in 3D, detachment.")

Annotations = Annotated[
    Path | None,
    typer.Option("--annotations", "-a", help="VIA or COCO file, or a folder of labelme, ImageJ or label files."),
]
Change = Annotated[list[str] | None, typer.Option("--set", help="Change a setting, like tile=384, changes={...}.")]


@app.command(
    epilog=examples(
        "keras-microseg particles train DATA --out MODEL",
        "keras-microseg particles train IMAGES --annotations via.json --out MODEL --minutes 20",
        "keras-microseg particles train IMAGES --annotations coco.json --out MODEL --preset gpu --validation b.png",
        "keras-microseg particles train DATA --out MODEL --resume",
    )
)
def train(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/, or images and an annotation file.")],
    out: Out,
    annotations: Annotations = None,
    preset: Annotated[str, typer.Option(help="light (CPU), default (ResNet-50) or gpu (bfloat16).")] = "light",
    minutes: Annotated[float | None, typer.Option(help="Time for the training. Default of light: 10 to 35.")] = None,
    validation: Annotated[
        list[str] | None, typer.Option("--validation", help="Image kept for validation; repeat. Default: a fifth.")
    ] = None,
    categories: Annotated[bool, typer.Option("--categories", help="Tell the annotated classes apart.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Start from this detector (.keras).")] = None,
    change: Change = None,
    backend: Backend = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a Mask R-CNN on annotated particles; MODEL/model.keras goes to `particles detect`."""
    use_backend(backend)
    from keras_microseg.workflows.particle_train import ParticleTrainSettings, train_particles

    changes: dict[str, Any] = parse_changes(change or [])
    if minutes is not None:
        changes["minutes"] = minutes
    if validation:
        changes["validation"] = tuple(validation)
    settings = ParticleTrainSettings.of_preset(
        str(data), preset, annotations=None if annotations is None else str(annotations), use_categories=categories,
        weights=None if weights is None else str(weights), seed=seed, **changes,
    )  # fmt: skip
    with show_progress() as progress:
        trained = train_particles(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    errors = [problem for problem in trained.problems if problem.is_error]
    for problem in errors[:20]:
        typer.echo(f"Note: {problem}", err=True)
    if len(errors) > 20:
        typer.echo(f"Note: and {len(errors) - 20} more, see {out / 'train_settings.json'}", err=True)
    if trained.scores:
        say = {name: f"{trained.scores[name]:.3f}" for name in ("ap50", "ap75", "ap", "precision", "recall")}
        typer.echo("Validation: " + ", ".join(f"{name} {value}" for name, value in say.items()))
    typer.echo(f"Model: {trained.model_path}")


@app.command(
    epilog=examples(
        "keras-microseg particles detect IMAGES --model MODEL/model.keras --out RESULT",
        "keras-microseg particles detect IMAGES --model MODEL/model.keras --out RESULT --min-score 0.7",
        "keras-microseg particles detect SCAN.tif --volume --axis z --model MODEL/model.keras --out SLICES",
    )
)
def detect(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders; with --volume one volume.")],
    out: Out,
    model: Annotated[Path, typer.Option("--model", "-m", help="A .keras file of `particles train`.")],
    min_score: Annotated[float | None, typer.Option(help="Least score of a particle. Default: the model's.")] = None,
    diameter: Annotated[str | None, typer.Option(help="Typical particle size, when unlike the training's.")] = None,
    min_diameter: Annotated[str | None, typer.Option(help="Leave out smaller particles, like 5nm or 4px.")] = None,
    volume: Annotated[bool, typer.Option("--volume", help="Slices of one volume, for `particles link`.")] = False,
    axis: Annotated[str, typer.Option(help="Direction of the slices: z, y or x.")] = "z",
    pixel_size: PixelSizeOption = None,
    info_bar: InfoBar = "auto",
    exclude_border: Annotated[bool, typer.Option("--exclude-border", help="Leave out cut particles.")] = False,
    unit: Unit = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find particles with a trained Mask R-CNN; write labels, tables and a report."""
    use_backend(backend)
    if volume:
        from keras_microseg.workflows.particle_slices import detect_slices

        with show_progress() as progress:
            folder = detect_slices(
                images[0], model, out, axis=axis, min_score=min_score, pixel_size=pixel_size, resume=resume,
                overwrite=overwrite, progress=progress,
            )  # fmt: skip
        typer.echo(f"Labels of the slices: {folder}")
        return
    from keras_microseg.checks import UserError
    from keras_microseg.workflows import segment_images

    if model.is_file() and not segment_images.is_detector(str(model)):
        raise UserError(f"{model}: is no detector. Use a file of `particles train`, or `segment --model`.")
    with show_progress() as progress:
        results = segment_images.segment(
            images, out, model=str(model), pixel_size=pixel_size, info_bar=parse_row(info_bar), diameter=diameter,
            min_diameter=min_diameter, exclude_border=exclude_border, unit=unit, min_score=min_score, resume=resume,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(results)


@app.command(
    epilog=examples(
        "keras-microseg particles evaluate RESULT TRUTH",
        "keras-microseg particles evaluate RESULT coco.json --images IMAGES --out scores.json",
        "keras-microseg particles evaluate RESULT DATA/labels --strata states.csv",
    )
)
def evaluate(
    predicted: Annotated[Path, typer.Argument(help="Folder of a run, or of label images.")],
    truth: Annotated[Path, typer.Argument(help="Label images, or annotations of any format.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the scores.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the annotated images.")] = None,
    strata: Annotated[Path | None, typer.Option(help="CSV with image, label, stratum of the true objects.")] = None,
    threshold: Annotated[float, typer.Option(help="IoU from which an object is found.")] = 0.5,
    min_area: Annotated[int, typer.Option(help="Leave out objects of fewer pixels.")] = 0,
) -> None:
    """Average precision, F1, PQ, split and merged objects, with intervals over the images. Needs no keras."""
    from keras_microseg.workflows.particle_evaluate import evaluate_particles

    scores = evaluate_particles(
        predicted, truth, out, images=images, strata=strata, threshold=threshold, min_area=min_area
    )
    for name, (value, low, high) in scores.summary.items():
        typer.echo(f"{name:<15}{value:8.3f}" + (f"   [{low:.3f}, {high:.3f}]" if low == low else ""))
    if len(scores.strata):
        typer.echo(scores.strata.to_string(index=False))
    list_failures(scores.failures)


@app.command(
    name="convert-weights",
    epilog=examples("keras-microseg particles convert-weights mask_rcnn_particle.h5 --out MODEL.keras"),
)
def convert_weights(
    weights: Annotated[Path, typer.Argument(help="A .h5 file of the Matterport code.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .keras file to write.")],
    tile: Annotated[int, typer.Option(help="Side of the tiles, a multiple of 64.")] = 1024,
    backend: Backend = None,
) -> None:
    """Turn Mask R-CNN weights of the Matterport layout into a model for `particles detect`."""
    use_backend(backend)
    from keras_microseg.workflows.particle_weights import convert_weights as convert

    for line in convert(weights, out, tile=tile):
        typer.echo(line)
    typer.echo(f"Model: {out}")


@app.command(
    epilog=examples(
        "keras-microseg particles inspect a.tif --model MODEL/model.keras --out STAGES",
        "keras-microseg particles inspect a.tif --model MODEL/model.keras --labels b.tif --corner 0,256 --out STAGES",
    )
)
def inspect(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    out: Out,
    model: Annotated[Path, typer.Option("--model", "-m", help="A .keras file of `particles train`.")],
    corner: Annotated[str | None, typer.Option(help="Row,column of the tile. Default: the middle.")] = None,
    labels: Annotated[Path | None, typer.Option(help="True label image, to show the true boxes.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score of the objects drawn.")] = None,
    backend: Backend = None,
) -> None:
    """Show every stage of the detector on one tile: anchors, proposals, regions, masks, activations, weights."""
    use_backend(backend)
    from keras_microseg.workflows.particle_inspect import inspect_particles

    place = None
    if corner is not None:
        parts = corner.replace("x", ",").split(",")
        if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
            raise typer.BadParameter(f"write row,column. Received: {corner!r}", param_hint="--corner")
        place = (int(parts[0]), int(parts[1]))
    page = inspect_particles(image, model, out, corner=place, min_score=min_score, labels=labels)
    typer.echo(f"Page: {page}")
