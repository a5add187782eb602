"""Commands at the top level: segment, measure, simulate, train, evaluate, demo, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    open_console,
    parse_row,
    parse_size,
    show_progress,
    use_backend,
)

app = typer.Typer()


@app.command(
    epilog=examples(
        "keras-microseg segment IMAGES --out RESULT",
        "keras-microseg segment a.tif b.tif --out RESULT --method classical",
        "keras-microseg segment IMAGES --out RESULT --pixel-size 1.2nm --min-diameter 5nm",
        "keras-microseg segment IMAGES --out RESULT --quality",
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
    quality: Annotated[
        bool, typer.Option("--quality", help="Also estimate how far the result can be trusted: about twice the time.")
    ] = False,
    unit: Unit = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Find, separate and measure the particles in IMAGES; write labels, tables and a report."""
    if method == "network":
        use_backend(backend)
    from keras_microseg.workflows import segment_images

    with show_progress() as progress:
        results = segment_images.segment(
            images, out, method=method, model=model, pixel_size=pixel_size, info_bar=parse_row(info_bar),
            polarity=polarity, diameter=diameter, min_diameter=min_diameter, flips=flips,
            exclude_border=exclude_border, unit=unit, quality=quality, resume=resume, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    finish(results)


@app.command(
    epilog=examples(
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

    with show_progress() as progress:
        results = measure_labels.measure(
            labels, out, images=images, pixel_size=pixel_size, exclude_border=exclude_border, unit=unit,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    finish(results)


@app.command(
    epilog=examples(
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

    with show_progress() as progress:
        folder = simulate_images.simulate(
            count, out, seed=seed, preset=preset, size=parse_size(size), resume=resume, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    typer.echo(f"{count} micrographs in {folder / 'images'}, their particles in {folder / 'labels'}")


@app.command(
    epilog=examples(
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
    use_backend(backend)
    from keras_microseg.workflows import train_segmentation

    with show_progress() as progress:
        trained = train_segmentation.train(
            data, out, architecture=architecture, epochs=epochs, batch_size=batch_size, tile=tile,
            learning_rate=learning_rate, validation=validation, mixed_precision=mixed_precision, seed=seed,
            resume=resume, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    typer.echo(f"Model: {trained.model_path}")
    for name, value in trained.scores.items():
        typer.echo(f"  {name}: {value:.4g}")
    typer.echo(f"Use it: keras-microseg segment IMAGES --model {trained.model_path} --out RESULT")


@app.command(epilog=examples("keras-microseg train-default --out MODEL --resume"))
def train_default(
    out: Out,
    epochs: Annotated[int, typer.Option(help="Epochs of 800 newly rendered images.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 8,
    seed: Seed = 1,
    backend: Backend = None,
    resume: Resume = False,
) -> None:
    """Train the model that ships with the package anew: on simulated micrographs, an hour on two cores."""
    use_backend(backend)
    from keras_microseg.workflows import default_model

    path = default_model.train_default(out, resume=resume, epochs=epochs, batch_size=batch_size, seed=seed)
    typer.echo(f"Model: {path}")


@app.command(
    epilog=examples(
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
    published: Annotated[
        bool, typer.Option("--published", help="Also the three scores of Ruehle et al. 2021, to compare with theirs.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Score label images against the truth, with 95 % bootstrap intervals over the images. Needs no keras."""
    from keras_microseg.workflows import evaluate_labels

    with show_progress() as progress:
        scores = evaluate_labels.evaluate(
            predicted, truth, out, min_area=min_area, threshold=threshold, published=published, seed=seed,
            progress=progress,
        )  # fmt: skip
    from rich.table import Table

    table = Table(title=f"{scores.num_images} images, {scores.true_objects} true and {scores.predicted_objects} found")
    for heading, justify in (("Score", "left"), ("Value", "right"), ("95 % interval", "right"), ("Meaning", "left")):
        table.add_column(heading, justify=justify)
    for row in scores.rows:
        interval = f"{row.low:.3f} to {row.high:.3f}" if scores.num_images > 1 else "-"  # one image has no spread
        table.add_row(row.title, f"{row.value:.3f}", interval, row.meaning)
    open_console(stdout=True).print(table)
    if out:
        typer.echo(f"Scores: {out}")
    list_failures(scores.failures)


@app.command(epilog=examples("keras-microseg demo", "keras-microseg demo --method classical --no-open"))
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
        use_backend(backend)
    with show_progress() as progress:
        results = workflow.run_demo(out, method=method, count=count, seed=seed, progress=progress)
    typer.echo(f"Found {len(results.table)} particles; {results.true_particles} were drawn (F1 {results.f1:.2f}).")
    finish(results.segmentation)
    if open_report:
        workflow.open_in_browser(results.segmentation.report_path)


@app.command(epilog=examples("keras-microseg doctor"))
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
