"""`keras-microseg classify`: sort particles into the user's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.cli.shared import (
    Backend,
    Group,
    Out,
    Overwrite,
    PixelSizeOption,
    Resume,
    Seed,
    Unit,
    examples,
    finish,
    open_console,
    show_progress,
    use_backend,
)

app = typer.Typer(
    cls=Group,
    help="Sort particles into your own classes (whole, occluded, fragment, ...) and measure each class.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command(
    epilog=examples(
        "keras-microseg classify train DATA --out MODEL",
        "keras-microseg classify train --images SEM --labels MASKS --classes COLOURS --out MODEL",
        "keras-microseg classify train DATA --out MODEL --method pixels --epochs 30",
    )
)
def train(
    out: Out,
    data: Annotated[Path | None, typer.Argument(help="Folder with images/, labels/ (or masks/) and classes/.")] = None,
    images: Annotated[Path | None, typer.Option(help="Micrographs, instead of DATA/images.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label images or masks, instead of DATA/labels.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class images, one colour per class: DATA/classes.")] = None,
    method: Annotated[
        str, typer.Option(help="'features': measured numbers, seconds, no keras; 'pixels': a network.")
    ] = "features",
    class_list: Annotated[
        Path | None, typer.Option(help='File that names the colours, a line each: "whole, #00ff00".')
    ] = None,
    unmarked: Annotated[
        str | None, typer.Option(help="Class of particles left in the background's colour. Default: left out.")
    ] = None,
    held_out: Annotated[str, typer.Option(help="Images kept for the evaluation, by name, separated by commas.")] = "",
    validation: Annotated[float, typer.Option(help="Share of the images held out when none is named.")] = 0.15,
    pixel_size: PixelSizeOption = None,
    epochs: Annotated[int, typer.Option(help="Of the network: passes over the data.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Of the network: tiles per step.")] = 8,
    tile: Annotated[int, typer.Option(help="Of the network: edge of the tiles, pixels.")] = 192,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a classifier on micrographs whose particles are painted in the colours of their classes."""
    if method == "pixels":
        use_backend(backend)
    from keras_microseg.workflows import classify_train

    folders = {"images": images, "labels": labels, "classes": classes}
    with show_progress() as progress:
        trained = classify_train.train_classifier(
            data, out, method=method, class_list=None if class_list is None else str(class_list), unmarked=unmarked,
            held_out=tuple(name.strip() for name in held_out.split(",") if name.strip()), validation=validation,
            pixel_size=pixel_size, epochs=epochs, batch_size=batch_size, tile=tile, seed=seed, resume=resume,
            overwrite=overwrite, progress=progress, **{name: path for name, path in folders.items() if path},
        )  # fmt: skip
    _show(trained)
    typer.echo(f"Use it: keras-microseg classify apply RESULT --model {trained.model_path} --out CLASSIFIED")


@app.command(
    epilog=examples(
        "keras-microseg classify apply RESULT --model MODEL/classifier.json --out CLASSIFIED",
        "keras-microseg classify apply LABELS --images IMAGES --model MODEL/classifier.keras --out CLASSIFIED",
        'keras-microseg classify apply RESULT --model MODEL --out CLASSIFIED --combine "whole=0.9,doubtful=0.5"',
    )
)
def apply(
    source: Annotated[Path, typer.Argument(help="Folder of a segment or measure run, or label images.")],
    model: Annotated[Path, typer.Option(help="What classify train made: .json, .keras, or its folder.")],
    out: Out,
    images: Annotated[Path | None, typer.Option(help="The micrographs, when SOURCE are label images.")] = None,
    combine: Annotated[
        str, typer.Option(help='Weights for a keep_score, like "whole=0.9,doubtful=0.5"; kept from 0.5 on.')
    ] = "",
    pixel_size: PixelSizeOption = None,
    exclude_border: Annotated[
        bool, typer.Option("--exclude-border", help="Leave out particles cut by the image edge.")
    ] = False,
    unit: Unit = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Give every particle its class and measure class by class."""
    if model.suffix == ".keras" or (model / "classifier.keras").is_file():
        use_backend(backend)
    from keras_microseg.workflows import classify_particles

    with show_progress() as progress:
        results = classify_particles.classify(
            source, out, model=model, images=images, combine=_weights(combine), pixel_size=pixel_size,
            exclude_border=exclude_border, unit=unit, resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(results)


def _weights(text: str) -> dict[str, float] | None:
    if not text.strip():
        return None
    try:
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise typer.BadParameter(f"write CLASS=WEIGHT,... Received: {text!r}", param_hint="--combine") from None


def _show(trained) -> None:
    from rich.table import Table

    names = trained.classes.names
    table = Table(title=f"Images held out: {', '.join(trained.held_out) or 'none'}")
    table.add_column("Truth")
    for name in names:
        table.add_column(f"called {name}", justify="right")
    for name, row in zip(names, trained.confusion, strict=True):
        table.add_row(name, *(str(count) for count in row))
    open_console(stdout=True).print(table)
    from keras_microseg.metrics.pixel import balanced_accuracy

    if trained.confusion.any():
        typer.echo(f"Balanced accuracy on {int(trained.confusion.sum())} particles: {trained.balanced_accuracy:.3f}")
    if trained.cross_validation is not None and trained.cross_validation.any():
        value = balanced_accuracy(trained.cross_validation)
        typer.echo(f"In cross-validation on {int(trained.cross_validation.sum())} particles: {value:.3f}")
    typer.echo(f"Model: {trained.model_path}")
