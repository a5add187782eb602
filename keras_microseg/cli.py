"""The command line: one subcommand per workflow. Reads options, prints results; everything else is in `workflows`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from keras_microseg import __version__


class _Group(typer.core.TyperGroup):
    """Prints foreseen errors as they stand, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        from keras_microseg.checks import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            _fail(str(stop) or "Stopped.")
            raise typer.Exit(130) from stop


app = typer.Typer(
    name="keras-microseg",
    cls=_Group,
    help="Find, separate and measure particles in electron-microscopy images.",
    epilog="Start with: keras-microseg demo. Help on one command: keras-microseg segment --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made when missing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run in the same folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run in that folder.")]
PixelSizeOption = Annotated[
    str | None,
    typer.Option("--pixel-size", "-p", help='Edge length of a pixel, like 1.2nm or "1.2 x 1.3 um" (y before x). '
                 "Default: from the file."),
]  # fmt: skip
Unit = Annotated[str | None, typer.Option("--unit", help="Unit of all lengths: nm, um, mm. Default: one that fits.")]
InfoBar = Annotated[
    str, typer.Option("--info-bar", help="First pixel row of the microscope's data bar, 'auto' to find it, or 'none'.")
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="jax, torch or tensorflow. Default: KERAS_BACKEND, else the first."),
]
Seed = Annotated[int, typer.Option("--seed", help="Start of all random numbers; the same seed gives the same result.")]


def _examples(*lines: str) -> str:
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras_microseg {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("keras_microseg").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("tifffile").setLevel(logging.WARNING if verbose else logging.CRITICAL)  # it names no file


@app.command(
    epilog=_examples(
        "keras-microseg segment IMAGES --out RESULT",
        "keras-microseg segment a.tif b.tif --out RESULT --method classical",
        "keras-microseg segment IMAGES --out RESULT --pixel-size 1.2nm --min-diameter 5nm",
        "keras-microseg segment IMAGES --out RESULT --resume",
    )
)
def segment(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Out,
    method: Annotated[str, typer.Option(help="'network', or 'classical': no keras, no training.")] = "network",
    model: Annotated[str, typer.Option(help="A .keras file; 'default' is the one in the package.")] = "default",
    pixel_size: PixelSizeOption = None,
    info_bar: InfoBar = "auto",
    polarity: Annotated[
        str, typer.Option(help="'bright' particles on dark ground, 'dark' on bright, or 'auto' (default).")
    ] = "auto",
    diameter: Annotated[
        str | None, typer.Option(help="Typical particle size, like 40px or 80nm. Default: found from the image.")
    ] = None,
    min_diameter: Annotated[
        str | None, typer.Option(help="Leave out particles below this equivalent diameter, like 5nm or 4px.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Average over mirrored images: slower, steadier.")] = False,
    exclude_border: Annotated[
        bool, typer.Option("--exclude-border", help="Leave out particles cut by the image edge.")
    ] = False,
    unit: Unit = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find, separate and measure the particles in IMAGES; write labels, tables and a report."""
    if method == "network":
        _use_backend(backend)
    from keras_microseg.workflows import segment_images

    with _progress() as progress:
        results = segment_images.segment(
            images, out, method=method, model=model, pixel_size=pixel_size, info_bar=_row(info_bar), polarity=polarity,
            diameter=diameter, min_diameter=min_diameter, flips=flips, exclude_border=exclude_border, unit=unit,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    _finish(results)


@app.command(
    epilog=_examples(
        "keras-microseg measure LABELS --pixel-size 1.2nm --out RESULT",
        "keras-microseg measure LABELS --images IMAGES --out RESULT",
    )
)
def measure(
    labels: Annotated[list[Path], typer.Argument(help="Label images (0 = background, 1, 2, ...) or masks.")],
    out: Out,
    images: Annotated[
        Path | None, typer.Option(help="The micrographs, paired by file name: for grey values and pictures.")
    ] = None,
    pixel_size: PixelSizeOption = None,
    exclude_border: Annotated[
        bool, typer.Option("--exclude-border", help="Leave out particles cut by the image edge.")
    ] = False,
    unit: Unit = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure the particles of label images or masks. Needs no keras."""
    from keras_microseg.workflows import measure_labels

    with _progress() as progress:
        results = measure_labels.measure(
            labels, out, images=images, pixel_size=pixel_size, exclude_border=exclude_border, unit=unit,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    _finish(results)


@app.command(
    epilog=_examples(
        "keras-microseg simulate --count 200 --out DATA",
        "keras-microseg simulate --count 20 --out DATA --preset tem --size 512x512 --seed 3",
    )
)
def simulate(
    out: Out,
    count: Annotated[int, typer.Option("--count", "-n", help="How many micrographs.")] = 10,
    size: Annotated[str, typer.Option(help="Rows x columns in pixels, like 712x1024.")] = "712x1024",
    preset: Annotated[str, typer.Option(help="sem, powder, tem, stem, or any of them.")] = "any",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make micrographs with exactly known particles. Needs no keras."""
    from keras_microseg.workflows import simulate_images

    with _progress() as progress:
        folder = simulate_images.simulate(
            count, out, seed=seed, preset=preset, size=_size(size), resume=resume, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    typer.echo(f"{count} micrographs in {folder / 'images'}, their particles in {folder / 'labels'}")


@app.command(
    epilog=_examples(
        "keras-microseg train DATA --out MODEL",
        "keras-microseg train DATA --out MODEL --epochs 30 --batch-size 4",
        "keras-microseg train DATA --out MODEL --resume",
        "keras-microseg segment IMAGES --model MODEL/model.keras --out RESULT",
    )
)
def train(
    data: Annotated[Path, typer.Argument(help="Folder with images/ and labels/ (or masks/), paired by file name.")],
    out: Out,
    architecture: Annotated[str, typer.Option(help="unet or multires_unet.")] = "unet",
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Tiles per step.")] = 8,
    tile: Annotated[int, typer.Option(help="Edge of the square tiles cut from the images, pixels.")] = 256,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    validation: Annotated[float, typer.Option(help="Share of the images kept for validation, 0 to 0.5.")] = 0.15,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="For GPUs with tensor cores.")] = False,
    seed: Seed = 0,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a network on your own images with masks or label images."""
    _use_backend(backend)
    from keras_microseg.workflows import train_segmentation

    with _progress() as progress:
        trained = train_segmentation.train(
            data, out, architecture=architecture, epochs=epochs, batch_size=batch_size, tile=tile,
            learning_rate=learning_rate, validation=validation, mixed_precision=mixed_precision, seed=seed,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    typer.echo(f"Model: {trained.model_path}")
    for name, value in trained.scores.items():
        typer.echo(f"  {name}: {value:.4g}")
    typer.echo(f"Use it: keras-microseg segment IMAGES --model {trained.model_path} --out RESULT")


@app.command(epilog=_examples("keras-microseg train-default --out MODEL --resume"))
def train_default(
    out: Out,
    epochs: Annotated[int, typer.Option(help="Epochs of 800 newly rendered images.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 8,
    seed: Seed = 1,
    backend: Backend = None,
    resume: Resume = False,
) -> None:
    """Train the model that ships with the package anew: on simulated micrographs, an hour on two cores."""
    _use_backend(backend)
    from keras_microseg.workflows import default_model

    path = default_model.train_default(out, resume=resume, epochs=epochs, batch_size=batch_size, seed=seed)
    typer.echo(f"Model: {path}")


@app.command(
    epilog=_examples(
        "keras-microseg evaluate RESULT TRUTH",
        "keras-microseg evaluate PREDICTED TRUTH --min-area 10 --out scores.json",
    )
)
def evaluate(
    predicted: Annotated[Path, typer.Argument(help="Label images, a folder of them, or the folder of a segment run.")],
    truth: Annotated[Path, typer.Argument(help="True label images or masks with the same file names.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the scores to this .json file.")] = None,
    min_area: Annotated[int, typer.Option(help="Ignore objects of fewer pixels.")] = 0,
    threshold: Annotated[float, typer.Option(help="IoU above which two objects are the same one.")] = 0.5,
    seed: Seed = 0,
) -> None:
    """Score label images against the truth, with 95 % bootstrap intervals over the images. Needs no keras."""
    from keras_microseg.workflows import evaluate_labels

    with _progress() as progress:
        scores = evaluate_labels.evaluate(
            predicted, truth, out, min_area=min_area, threshold=threshold, seed=seed, progress=progress
        )
    from rich.table import Table

    table = Table(title=f"{scores.num_images} images, {scores.true_objects} true and {scores.predicted_objects} found")
    for heading, justify in (("Score", "left"), ("Value", "right"), ("95 % interval", "right"), ("Meaning", "left")):
        table.add_column(heading, justify=justify)
    for row in scores.rows:
        interval = f"{row.low:.3f} to {row.high:.3f}" if scores.num_images > 1 else "-"  # one image has no spread
        table.add_row(row.title, f"{row.value:.3f}", interval, row.meaning)
    _console(stdout=True).print(table)
    if out:
        typer.echo(f"Scores: {out}")
    _list_failures(scores.failures)


@app.command(epilog=_examples("keras-microseg demo", "keras-microseg demo --method classical --no-open"))
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("keras-microseg-demo"),
    method: Annotated[str, typer.Option(help="'auto': the network when keras is there, else classical.")] = "auto",
    open_report: Annotated[bool, typer.Option("--open/--no-open", help="Show the report in the browser.")] = True,
    count: Annotated[int, typer.Option("--count", "-n", help="How many micrographs.")] = 4,
    seed: Seed = 7,
    backend: Backend = None,
) -> None:
    """Simulate micrographs, segment and measure them, and show the report: under two minutes."""
    from keras_microseg.workflows import demo as workflow

    method = workflow.choose_method(method)
    if method == "network":
        _use_backend(backend)
    with _progress() as progress:
        results = workflow.run_demo(out, method=method, count=count, seed=seed, progress=progress)
    typer.echo(f"Found {len(results.table)} particles; {results.true_particles} were drawn (F1 {results.f1:.2f}).")
    _finish(results.segmentation)
    if open_report:
        workflow.open_in_browser(results.segmentation.report_path)


@app.command(epilog=_examples("keras-microseg doctor"))
def doctor() -> None:
    """Check the installation: backend, device, versions, and what is missing and how to get it."""
    from keras_microseg.workflows import doctor as workflow

    checks = workflow.examine()
    for check in checks:
        mark = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}[check.status]
        typer.echo(f"{mark}  {check.title}: {check.text}")
        if check.remedy:
            typer.echo(f"         -> {check.remedy}")
    if not workflow.is_usable(checks):
        raise typer.Exit(1)


def _use_backend(name: str | None) -> None:
    """Choose the backend before keras loads, and say which."""
    if name:
        os.environ["KERAS_BACKEND"] = name
    from keras_microseg import backend

    typer.echo(f"Backend: {backend.select()}", err=True)


def _row(text: str) -> str | int | None:
    if text.lower() == "none":
        return None
    return int(text) if text.isdigit() else text


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts) or len(parts) not in (1, 2):
        raise typer.BadParameter(f"write rows x columns, like 712x1024. Received: {text!r}", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def _console(*, stdout: bool = False) -> Any:
    from rich.console import Console

    console = Console(stderr=not stdout)
    return console if console.is_terminal else Console(stderr=not stdout, width=120)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on a terminal, else None."""
    console = _console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[item]}", markup=False))  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int, item: str) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total, item=item)
            bars.update(tasks[step], completed=done, total=total, item=item)

        yield show


def _finish(results: Any) -> None:
    """Say what was found and where it lies; leave with code 1 when something failed."""
    typer.echo(f"{len(results.table)} particles in {len(results.images)} images.")
    for text in results.highlights():
        typer.echo(text)
    for warning in results.warnings:
        typer.echo(f"Note: {warning}", err=True)
    if results.report_path:
        typer.echo(f"Report: {results.report_path}")
    _list_failures(results.failures)


def _list_failures(failures: Any) -> None:
    if not failures:
        return
    _fail(f"{len(failures)} failed:")
    for failure in failures:
        _fail(f"  {failure.message}")
    raise typer.Exit(1)


def _fail(text: str) -> None:
    typer.secho(text, fg=typer.colors.RED if sys.stderr.isatty() else None, err=True)
