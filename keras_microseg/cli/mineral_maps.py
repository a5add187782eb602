"""Commands of `keras-microseg mineral ...` that make whole maps: predict, view, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_microseg.cli.shared import (
    Backend,
    Out,
    Overwrite,
    Resume,
    examples,
    list_failures,
    show_progress,
    use_backend,
)

app = typer.Typer()


@app.command(
    epilog=examples(
        "keras-microseg mineral predict sem.ome.tif --model MODEL/model.keras --out RESULT",
        "keras-microseg mineral predict sem.zarr -m model.keras -o RESULT --working-pixel-size 1um --workers 2",
        "keras-microseg mineral predict sem.zarr -m model.keras -o RESULT --shard 3/8",
        "keras-microseg mineral predict sem.raw -m model.keras -o RESULT --pixel-size 0.3um --max-ram 2GB --resume",
    )
)
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, folders or patterns: PNG, TIFF, OME-TIFF, OME-Zarr, "
                                                      "raw pixels with a .json beside them.")],
    out: Out,
    model: Annotated[Path, typer.Option("--model", "-m", help="Network of `mineral train`.")],
    working_pixel_size: Annotated[
        str | None,
        typer.Option(help="At which the network works, like 1um, 3px (image pixels) or native. Default: of the "
                          "training images, where known."),
    ] = None,
    pixel_size: Annotated[
        str | None, typer.Option("--pixel-size", "-p", help="Of the images, like 0.3um, or 'px'. Default: their own.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Edge of the network's blocks, px. Default: about 512.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Of neighbouring tiles, px. Default: the model's.")] = None,
    blend: Annotated[str, typer.Option(help="none (tiles keep their middle), linear, hann or gaussian.")] = "none",
    flips: Annotated[int, typer.Option(help="Average over 4 or 8 mirrored copies; 0 = none.")] = 0,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write a confidence map.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write all probabilities.")] = False,
    tiff: Annotated[bool, typer.Option("--tiff/--no-tiff", help="Write an OME-TIFF beside the OME-Zarr.")] = True,
    batch_size: Annotated[int, typer.Option("--batch", help="Tiles per call of the network; 16 or more on a GPU.")] = 4,
    chunk: Annotated[int | None, typer.Option(help="Edge of pieces a stopped run keeps, px. Default: 1024")] = None,
    max_ram: Annotated[str, typer.Option(help="Memory of one process.")] = "2GB",
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes on this machine.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(help="dask.distributed scheduler whose workers compute, like tcp://host:8786.")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="Part of a job array, like 1/8; the last joins all.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network.")] = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Class map of images of any size: OME-Zarr and OME-TIFF with classes, colours, pixel size, smaller levels."""
    use_backend(backend)
    from keras_microseg.workflows import mineral_predict as workflow

    settings = workflow.MapSettings(
        tuple(map(str, images)), str(model), working_pixel_size, pixel_size, tile, overlap, blend, flips, confidence,
        probabilities, tiff, batch_size, chunk, max_ram, workers, scheduler, _parse_shard(shard), device, threads,
    )  # fmt: skip
    with show_progress() as progress:
        maps = workflow.predict(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for result in maps.results:
        if not result.complete:
            typer.echo(f"This part is done, others are not yet: {result.folder}")
            continue
        facts, seams = result.facts, result.facts["seams"]
        if seams["ratio"] is not None:
            typer.echo(
                f"Seams: class changes across them {seams['ratio']:.3f} times those elsewhere; "
                f"{seams['recomputed_differences']} of {seams['recomputed_pixels']} pixels at their crossings change "
                f"when the tiles are moved"
            )
        if not seams["passed"]:
            typer.echo("Note: the tiles show in the map. Use a larger --overlap, or --blend linear.", err=True)
        grey = facts.get("grey_values")
        if grey and grey["unlike"]:
            typer.echo(
                f"Note: the grey values are unlike those of the training images (distance {grey['distance']:.2f}, "
                f"above {grey['limit']}); do not trust the map before you have looked at it.", err=True
            )  # fmt: skip
        if "confidence" in facts:
            found = facts["confidence"]
            typer.echo(f"Confidence: {found['mean']:.2f} on average, {100 * found['below_half']:.1f} % below one half")
        typer.echo(f"Map: {result.folder}")
    list_failures(maps.failures)


@app.command(
    epilog=examples("keras-microseg mineral view RESULT", "keras-microseg mineral view RESULT --max-pixels 8e9")
)
def view(
    result: Annotated[Path, typer.Argument(help="Folder of `mineral predict`.", metavar="RESULT")],
    max_pixels: Annotated[float, typer.Option(help="Pixels of the finest level on the page.")] = 4e8,
) -> None:
    """A page to walk through the map, over the micrograph: opens in any browser, from the disk, offline."""
    from keras_microseg.workflows import mineral_view as workflow

    with show_progress() as progress:
        page = workflow.view(result, max_pixels=max_pixels, progress=progress)
    typer.echo(f"Page: {page}")


@app.command(
    epilog=examples(
        "keras-microseg mineral simulate --size 4000x4000 --out rock.zarr",
        "keras-microseg mineral simulate --size 88000x87000 --out SEM.zarr --workers 8 --resume",
    )
)
def simulate(
    out: Out,
    size: Annotated[str, typer.Option(help="Rows x columns, px.")] = "4000x4000",
    pixel_size: Annotated[str, typer.Option("--pixel-size", "-p", help="Edge of a pixel.")] = "0.3um",
    grain_size: Annotated[float, typer.Option(help="Mean edge of a grain, px.")] = 200.0,
    seed: Annotated[int, typer.Option(help="Of the rock.")] = 0,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes.")] = 1,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """A synthetic micrograph of a rock of any size with its true classes, as OME-Zarr."""
    from keras_microseg.cli.shared import parse_size
    from keras_microseg.simulation import RockSettings
    from keras_microseg.workflows import mineral_simulate as workflow

    settings = RockSettings(shape=parse_size(size), seed=seed, grain_size=grain_size)
    with show_progress() as progress:
        workflow.simulate(
            settings, out, pixel_size=pixel_size, workers=workers, resume=resume, overwrite=overwrite, progress=progress
        )
    typer.echo(f"Micrograph: {out}, its true classes: {out / 'labels' / 'classes'}")


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, sign, count = text.partition("/")
    if not (sign and number.strip().isdigit() and count.strip().isdigit()):
        raise typer.BadParameter(f"write part/parts, like 1/8. Received: {text!r}", param_hint="--shard")
    return int(number), int(count)
