"""Commands of `keras-microseg sem ...` that do one part: outlines, masks, filter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.cli.sem import parse_changes
from keras_microseg.cli.shared import (
    Backend,
    Out,
    Overwrite,
    Resume,
    Seed,
    examples,
    list_failures,
    show_progress,
    use_backend,
)

app = typer.Typer()

Change = Annotated[list[str] | None, typer.Option("--set", help="Change one setting, like epochs=200. Repeat.")]


@app.command(
    epilog=examples(
        "keras-microseg sem outlines OUTLINES --out STOCK",
        "keras-microseg sem outlines OUTLINES --out STOCK --preset paper --resume",
    )
)
def outlines(
    masks: Annotated[Path, typer.Argument(help="Folder of single-particle masks, one white particle per file.")],
    out: Out,
    preset: Annotated[str, typer.Option(help="fast (minutes on a CPU), paper (as published), gpu.")] = "fast",
    change: Change = None,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
) -> None:
    """Learn to make particle outlines like those in MASKS; writes a stock of particles and a comparison page."""
    use_backend(backend)
    from keras_microseg.training.outlines import outline_settings
    from keras_microseg.workflows.outlines import REPORT, STOCK, train_outlines

    settings = outline_settings(preset, **parse_changes(change or []))
    with show_progress() as progress:
        result = train_outlines(masks, out, settings, seed=seed, resume=resume, progress=progress)
    if result.collapsed:
        typer.echo(f"Note: {result.collapsed}", err=True)
    typer.echo(f"Particles: {result.out_dir / STOCK}")
    typer.echo(f"Report: {result.out_dir / REPORT}")


@app.command(
    epilog=examples(
        "keras-microseg sem masks --particles STOCK/particles.npz --out MASKS --count 1000 --set coverage=(0.1,0.3)",
        "keras-microseg sem masks --particles OUTLINES --out MASKS --like IMAGES",
        "keras-microseg sem masks --out MASKS --preset tem",
    )
)
def masks(
    out: Out,
    particles: Annotated[
        Path | None,
        typer.Option(help="particles.npz, or a folder of single-particle masks. Default: analytic shapes."),
    ] = None,
    preset: Annotated[str, typer.Option(help="sem (agglomerates), tem (a layer), paper (as published).")] = "sem",
    like: Annotated[
        list[Path] | None, typer.Option(help="Micrographs whose coverage, sizes and clustering the masks shall have.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many masks.")] = 1000,
    change: Change = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Simulate masks with instance labels. Needs no keras."""
    from keras_microseg import io
    from keras_microseg.checks import check_choice
    from keras_microseg.simulation import MaskSettings, Particles, read_outlines
    from keras_microseg.workflows.match_masks import match_settings
    from keras_microseg.workflows.simulate_masks import simulate_masks

    check_choice("preset", preset, ("sem", "tem", "paper"))
    settings = getattr(MaskSettings, preset)(**parse_changes(change or []))
    if particles is None:
        stock = Particles.analytic(seed=seed)
    elif particles.suffix == ".npz":
        stock = Particles.load(particles)
    else:
        stock = Particles.from_outlines(read_outlines(particles))
    if like:
        match = match_settings(io.find_images(like), stock, base=settings, seed=seed)
        settings = match.settings
        for name, (images, made) in match.facts.items():
            typer.echo(f"{name}: images {_text(images)}, masks {_text(made)}")
    with show_progress() as progress:
        folder = simulate_masks(
            out, stock, settings, count, seed=seed, resume=resume, overwrite=overwrite, progress=progress
        )
    typer.echo(f"Masks: {folder}")


@app.command(
    name="filter",
    epilog=examples("keras-microseg sem filter FAKE_IMAGES MASKS --out FILTERED --threshold li"),
)
def filter_(
    images: Annotated[Path, typer.Argument(help="Folder of micrographs, made or real.")],
    masks: Annotated[Path, typer.Argument(help="Folder of masks or label images of the same names.")],
    out: Out,
    threshold: Annotated[str, typer.Option(help="'li', 'otsu' or a grey value.")] = "li",
    polarity: Annotated[str, typer.Option(help="'bright' or 'dark' particles.")] = "bright",
    split: Annotated[bool, typer.Option("--split", help="Separate the particles of the masks by watershed.")] = False,
    min_distance: Annotated[int, typer.Option(help="Least distance of the seeds of the watershed, px.")] = 9,
    blur: Annotated[float, typer.Option(help="Also write the images smoothed by this many px.")] = 0.0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Leave out particles of MASKS that IMAGES do not show. Needs no keras."""
    from keras_microseg.workflows.filter_masks import filter_masks

    level = threshold if threshold in ("li", "otsu") else _number(threshold)
    with show_progress() as progress:
        folder, failures = filter_masks(
            images, masks, out, threshold=level, polarity=polarity, split=split, min_distance=min_distance, blur=blur,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    typer.echo(f"Filtered masks: {folder}")
    list_failures(failures)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"'li', 'otsu' or a number. Received: {text!r}", param_hint="--threshold") from error


def _text(value: object) -> str:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join(f"{number:.3g}" for number in values)
