"""Commands of `keras-microseg mineral ...` around networks: train, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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

app = typer.Typer(no_args_is_help=True, help="Mineral maps of rock and phase maps of materials.")

Data = Annotated[
    Path, typer.Argument(help="Folder of `mineral tiles`; or with images/ and masks/; or train/ and train_annot/.")
]
Palette = Annotated[
    Path | None, typer.Option("--palette", help="CSV: id, name, colour; takes_others = yes for 'everything else'.")
]
Groups = Annotated[Path | None, typer.Option("--groups", help='JSON of merged classes: {"clay": ["illite", 9]}.')]


@app.command(
    epilog=examples(
        "keras-microseg mineral train TILES --out MODEL",
        "keras-microseg mineral train DATA --palette classes.csv --out MODEL --minutes 30",
        "keras-microseg mineral train DATA --out MODEL --preset gpu --backbone resnet18",
        "keras-microseg mineral train DATA --out MODEL --split leave-one-out --hold sample3",
        "keras-microseg mineral train DATA --out MODELS --hold all",
        "keras-microseg mineral train DATA --out MODEL --set optimizer.learning_rate=1e-3 --set epochs=40",
        "keras-microseg mineral train DATA --out MODEL --architecture two_branch --set tile=256",
        "keras-microseg mineral train TILES --out MODEL --set label_grid=4 --set deep_supervision=2",
    )
)
def train(
    data: Data,
    out: Out,
    preset: Annotated[str, typer.Option(help="cpu (small, minutes), gpu (wide), paper (as the source).")] = "cpu",
    architecture: Annotated[
        str | None,
        typer.Option(help="unet, linknet, two_branch, multires_unet, resunet, custom_unet, segnet or custom."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Encoder of unet and linknet: resnet18, vgg16, efficientnetb3, ...; none.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option("--encoder-weights", help="imagenet, or a file; with --regime fine-tune.")
    ] = None,
    regime: Annotated[str | None, typer.Option(help="fine-tune, frozen, random or two-stage.")] = None,
    palette: Palette = None,
    groups: Groups = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes 0, 1, ... of numbered masks, with commas.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="given (by the folder), image, block (with guard band), leave-one-out (--hold), none."),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(help="Sample that leave-one-out validates on, or its number; all.")
    ] = None,
    validation: Annotated[float | None, typer.Option(help="Share of the images that validate.")] = None,
    minutes: Annotated[float | None, typer.Option(help="End within this time, properly annealed.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, like tile=256, loss.focal_weight=2, augment.rotate=True."),
    ] = None,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a network on micrographs with class maps."""
    use_backend(backend)
    from keras_microseg.workflows import mineral_train

    given: dict[str, Any] = {
        "architecture": architecture,
        "encoder_weights": encoder_weights,
        "regime": regime or ("fine-tune" if encoder_weights else None),
        "palette": None if palette is None else str(palette),
        "groups": None if groups is None else str(groups),
        "classes": None if classes is None else tuple(name.strip() for name in classes.split(",")),
        "split": split or ("leave-one-out" if hold is not None else None),
        "hold": hold,
        "validation": validation,
        "minutes": minutes,
        "epochs": epochs,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if backbone is not None:
        changes |= {"backbone": None if backbone == "none" else backbone}
    settings = mineral_train.preset(preset, str(data), seed=seed, **changes, **parse_changes(change or []))
    if hold == "all":
        from keras_microseg.workflows.mineral_cross import TABLE, cross_validate

        with show_progress() as progress:
            table = cross_validate(settings, out, resume=resume, overwrite=overwrite, progress=progress)
        typer.echo(table[["sample", "method", "mean_iou", "accuracy"]].round(3).to_string(index=False))
        typer.echo(f"Table: {out / TABLE}")
        return
    with show_progress() as progress:
        done = mineral_train.train(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for name, value in done.scores.items():
        typer.echo(f"{name}: {value:.4f}")
    for warning in done.warnings:
        typer.echo(f"Note: {warning}", err=True)
    typer.echo(f"Model: {done.model_path}")


@app.command(
    epilog=examples(
        "keras-microseg mineral evaluate MODEL/model.keras TILES --out SCORES",
        "keras-microseg mineral evaluate MAPS DATA --part all --out SCORES",
        "keras-microseg mineral evaluate map.tif truth.png --palette classes.csv --out SCORES",
        "keras-microseg mineral evaluate MAP/classes.ome.tif TILES --out SCORES",
    )
)
def evaluate(
    predicted: Annotated[
        Path,
        typer.Argument(help="A .keras file of `mineral train`, class maps, or a map of the tiled image."),
    ],
    truth: Annotated[Path, typer.Argument(help="Data folder as for `mineral train`, or class maps alone.")],
    out: Out,
    part: Annotated[str, typer.Option(help="held-out, train, validation, test or all.")] = "held-out",
    palette: Palette = None,
    groups: Groups = None,
    classes: Annotated[str | None, typer.Option(help="Names of numbered classes, with commas.")] = None,
    block: Annotated[int | None, typer.Option(help="Edge of the blocks of the bootstrap, px.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also score thresholds and a random forest.")
    ] = True,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Score a network or class maps: IoU, Dice, kappa, boundaries, fractions, intervals, baselines."""
    if predicted.suffix == ".keras":
        use_backend(backend)
    import pandas as pd

    from keras_microseg.workflows import mineral_evaluate

    settings = mineral_evaluate.EvaluateSettings(
        str(predicted), str(truth), part, None if palette is None else str(palette),
        None if groups is None else str(groups),
        tuple(name.strip() for name in classes.split(",")) if classes else (),
        block=block, baselines=baselines, seed=seed,
    )  # fmt: skip
    with show_progress() as progress:
        folder = mineral_evaluate.evaluate(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    shown = pd.read_csv(folder.path / "scores.csv").set_index("method")
    typer.echo(shown[["mean_iou", "mean_iou_low", "mean_iou_high", "accuracy", "kappa"]].round(3).to_string())
    rows = pd.read_csv(folder.path / "classes.csv")
    for row in rows[rows["method"] == mineral_evaluate.METHOD].to_dict("records"):
        typer.echo(
            f"{row['class']}: IoU {row['iou']:.3f} ({row['iou_low']:.3f} to {row['iou_high']:.3f}), "
            f"fraction {100 * row['predicted_fraction']:.2f} % (true {100 * row['true_fraction']:.2f} %)"
        )
    typer.echo(f"Report: {folder.path / 'report.html'}")
