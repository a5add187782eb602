"""Commands of `keras-microseg mineral ...` around pix2pix: translate-train, translate-apply."""

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
    list_failures,
    parse_changes,
    show_progress,
    use_backend,
)

app = typer.Typer()


@app.command(
    "translate-train",
    epilog=examples(
        "keras-microseg mineral translate-train TILES --out MODEL",
        "keras-microseg mineral translate-train TILES --out MODEL --preset images --set epochs=60",
        "keras-microseg mineral translate-train TILES --out MODEL --preset source-labels",
    ),
)
def translate_train(
    data: Annotated[Path, typer.Argument(help="Folder of `mineral tiles`; or with images/ and masks/.")],
    out: Out,
    preset: Annotated[
        str,
        typer.Option(
            help="labels (micrograph to classes), images (classes to micrograph); source-labels, source-categorical, "
            "source-images: as published."
        ),
    ] = "labels",
    palette: Annotated[Path | None, typer.Option(help="CSV of the classes: id, name, colour.")] = None,
    groups: Annotated[Path | None, typer.Option(help="JSON of merged classes.")] = None,
    split: Annotated[
        str | None, typer.Option(help="given (by the folder), image, block (with guard band), leave-one-out (--hold).")
    ] = None,
    hold: Annotated[str | None, typer.Option(help="Sample that leave-one-out holds out.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, like adversarial=hinge or content_weight=50.")
    ] = None,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn to translate micrographs to class maps or back (pix2pix); scores come from held-out tiles alone."""
    use_backend(backend)
    from keras_microseg.workflows import mineral_translate

    given: dict[str, Any] = {
        "palette": None if palette is None else str(palette),
        "groups": None if groups is None else str(groups),
        "split": split or ("leave-one-out" if hold is not None else None),
        "hold": hold,
        "epochs": epochs,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    settings = mineral_translate.preset(preset, str(data), seed=seed, **changes, **parse_changes(change or []))
    with show_progress() as progress:
        scores = mineral_translate.train(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for name, value in scores.items():
        typer.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    typer.echo(f"Model: {out / mineral_translate.MODEL}")


@app.command(
    "translate-apply",
    epilog=examples(
        "keras-microseg mineral translate-apply MICROGRAPHS --model MODEL --out MAPS",
        "keras-microseg mineral translate-apply MASKS --model MODEL --out MORE --real TILES",
    ),
)
def translate_apply(
    inputs: Annotated[Path, typer.Argument(help="Micrographs, or masks of class numbers: whatever the model reads.")],
    out: Out,
    model: Annotated[Path, typer.Option(help="generator.keras, or the folder of translate-train.")],
    real: Annotated[
        Path | None,
        typer.Option(
            help="Data whose pairs join the made ones: its training pairs in train/, the others in val/, test/."
        ),
    ] = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Class maps of micrographs; or micrographs of class maps, as a training set that `mineral train` reads."""
    use_backend(backend)
    from keras_microseg.workflows import mineral_translate_apply as workflow
    from keras_microseg.workflows.steps import read_json

    with show_progress() as progress:
        folder = workflow.translate(
            inputs, out, model=model, real=real, resume=resume, overwrite=overwrite, progress=progress
        )
    if (folder.path / workflow.LIKENESS).is_file():
        found = read_json(folder.path / workflow.LIKENESS)
        for name in (n for n in found if f"{n}_reference" in found):
            typer.echo(
                f"{name.replace('_', ' ')}: {found[name]:.4f} (halves of the real images: "
                f"{found[name + '_reference']:.4f})"
            )
    typer.echo(f"Results: {folder.path}")
    list_failures(folder.failures())
