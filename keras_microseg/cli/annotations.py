"""`keras-microseg annotations`: check, convert and split annotation files. Needs no keras."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.shared import Group, Seed, examples, fail

app = typer.Typer(
    cls=Group,
    help="Annotations of VIA, COCO, labelme and ImageJ, label images and volumes: check, convert, split.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Source = Annotated[
    Path, typer.Argument(help="JSON or CSV file, or a folder of labelme files, ImageJ sets or label images.")
]
Images = Annotated[Path | None, typer.Option(help="Folder of the annotated images; sizes come from them.")]
Format = Annotated[
    str | None, typer.Option("--format", help="via, coco, labelme, imagej or labels. Default: by content.")
]
Category = Annotated[str | None, typer.Option(help="VIA: the region attribute that names the class.")]
SkipAbsent = Annotated[bool, typer.Option("--skip-absent", help="Leave out images that are listed but not there.")]
Report = Annotated[Path | None, typer.Option(help="Write all problems to this .csv or .xlsx file.")]
To = Annotated[
    str,
    typer.Option("--to", "-t", help="via, via-export, via1, via3, coco, coco-runs, labelme, imagej or labels."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
_SHOWN = 3


@app.command(
    epilog=examples(
        "keras-microseg annotations check via.json --images IMAGES",
        "keras-microseg annotations check coco.json --images IMAGES --skip-absent --report problems.csv",
    )
)
def check(
    source: Source,
    images: Images = None,
    format: Format = None,
    category: Category = None,
    categories: Annotated[str, typer.Option(help="The only categories allowed, separated by commas.")] = "",
    skip_absent: SkipAbsent = False,
    report: Report = None,
) -> None:
    """List what is wrong: shapes outside the image, crossing themselves or without area, absent images, and more."""
    allowed = tuple(name.strip() for name in categories.split(",") if name.strip())
    _run(source, images, format, category, skip_absent, report, categories=allowed)


@app.command(
    epilog=examples(
        "keras-microseg annotations convert via.json --images IMAGES --to coco --out coco.json",
        "keras-microseg annotations convert rois.zip --images IMAGES --to labels --out LABELS",
        "keras-microseg annotations convert LABELS --to imagej --out ROIS",
    )
)
def convert(
    source: Source,
    to: To,
    out: Annotated[Path, typer.Option("--out", "-o", help="File; folder for labelme, imagej and labels.")],
    images: Images = None,
    format: Format = None,
    category: Category = None,
    skip_absent: SkipAbsent = False,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the annotations in another format; what cannot be used is left out and listed."""
    _run(source, images, format, category, skip_absent, report, target=to, out=str(out), overwrite=overwrite)


@app.command(
    epilog=examples(
        "keras-microseg annotations split coco.json --to coco --out PARTS --share train=0.8 --share validation=0.2",
        "keras-microseg annotations split volume.tif --to labels --out PARTS --share train=3 --share test=1 "
        "--by block --guard 20",
    )
)
def split(
    source: Source,
    to: To,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder; gets a file or folder per part.")],
    share: Annotated[list[str], typer.Option("--share", help="Part and its share, like train=0.8. Repeat.")],
    by: Annotated[
        str, typer.Option(help="image, specimen (its tiles stay together) or block (along an axis).")
    ] = "image",
    axis: Annotated[str, typer.Option(help="Of the blocks: z, y or x.")] = "z",
    guard: Annotated[float, typer.Option(help="Pixels kept free between blocks.")] = 0.0,
    seed: Seed = 0,
    images: Images = None,
    format: Format = None,
    category: Category = None,
    skip_absent: SkipAbsent = False,
    report: Report = None,
    overwrite: Overwrite = False,
) -> None:
    """Split into parts that share nothing, and say where they would leak."""
    shares = {}
    for text in share:
        name, _, value = text.partition("=")
        try:
            shares[name.strip()] = float(value)
        except ValueError as error:
            raise typer.BadParameter(f"write like train=0.8. Received: {text!r}", param_hint="--share") from error
    _run(source, images, format, category, skip_absent, report, target=to, out=str(out), overwrite=overwrite,
         shares=shares, by=by, axis=axis, guard=guard, seed=seed)  # fmt: skip


def _run(
    source: Path,
    images: Path | None,
    format: str | None,
    category: str | None,
    skip_absent: bool,
    report: Path | None,
    **changes: Any,
) -> None:
    from keras_microseg.workflows.annotations import Settings, run

    settings = Settings(
        str(source),
        None if images is None else str(images),
        format,
        category,
        skip_absent=skip_absent,
        report=None if report is None else str(report),
        **changes,
    )
    outcome = run(settings)
    found = outcome.annotations
    names = f" of {', '.join(found.categories)}" if found.categories else ""
    typer.echo(f"{found.format}: {len(found.images)} images, {found.num_regions} objects{names}.")
    for part, path in outcome.written.items():
        typer.echo(f"{part or 'Written'}: {path} ({len(outcome.parts[part])} images)")
    for kind, count in outcome.kinds.most_common():
        alike = [problem for problem in outcome.problems if problem.kind == kind]
        word = "errors" if any(problem.is_error for problem in alike) else "notes"
        fail(f"{kind}: {count} {word}")
        for problem in alike[:_SHOWN]:
            fail(f"  {problem}")
        if count > _SHOWN:
            fail(f"  and {count - _SHOWN} more" + ("" if report else "; --report lists them"))
    for leak in outcome.leaks[:_SHOWN]:
        fail(f"Leak: {leak.first} ({leak.first_part}) and {leak.second} ({leak.second_part})")
    if outcome.leaks:
        fail(f"{len(outcome.leaks)} leaks between the parts. Split by specimen, or by block with a guard.")
    if outcome.leaks or any(problem.is_error for problem in outcome.problems):
        raise typer.Exit(1)
