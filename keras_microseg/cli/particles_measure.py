"""Commands of `keras-microseg particles ...` on detected particles: simulate, link, measure."""

from __future__ import annotations

from typing import Annotated

import typer

from keras_microseg.cli.shared import Out, Overwrite, Resume, Seed, examples, show_progress

app = typer.Typer()


@app.command(
    epilog=examples(
        "keras-microseg particles simulate --out DATA --images 40 --size 512x512",
        "keras-microseg particles simulate --out CATHODE --volume 128x384x384 --kind tif",
    )
)
def simulate(
    out: Out,
    images: Annotated[int, typer.Option(help="Slices, each through a cathode of its own.")] = 20,
    size: Annotated[str, typer.Option(help="Rows x columns of a slice.")] = "512x512",
    volume: Annotated[str | None, typer.Option(help="One volume instead: planes x rows x columns.")] = None,
    diameter: Annotated[float, typer.Option(help="Mean diameter of the particles, voxels.")] = 36.0,
    spread: Annotated[float, typer.Option(help="Standard deviation of the diameter over its mean.")] = 0.2,
    fraction: Annotated[float, typer.Option(help="Volume share of the particles.")] = 0.42,
    touching: Annotated[float, typer.Option(help="Share of the particles placed in contact with another.")] = 0.4,
    cracked: Annotated[float, typer.Option(help="Share of the particles with cracks and pores inside.")] = 0.3,
    shattered: Annotated[float, typer.Option(help="Share of the particles broken to fragments.")] = 0.2,
    crack_width: Annotated[float, typer.Option(help="Mean width of cracks, voxels.")] = 2.5,
    detachment: Annotated[
        str, typer.Option(help="Least and greatest share of a particle's surface under a void shell.")
    ] = "0,0.9",
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise, share of full scale.")] = 0.03,
    voxel_size: Annotated[str, typer.Option("--voxel-size", "-p", help="Edge length of the voxels.")] = "70nm",
    kind: Annotated[str, typer.Option("--kind", help="Volume as zarr, tif or npy.")] = "zarr",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw battery cathodes with exactly known particles, phases, detachment and damage. Needs no keras.

    Slices are written as images/, labels/, phases/ and objects.csv; a volume as grey, labels, phases and particles.csv.
    Phases: 0 void, 1 carbon/binder, 2 particle, 3 crack.
    """
    from keras_microseg.simulation.cathodes import CathodeSettings
    from keras_microseg.workflows.simulate_cathodes import CathodeRun, simulate_cathodes
    from keras_microseg.workflows.steps import read_json

    shape = _lengths(size, 2, "--size") if volume is None else _lengths(volume, 3, "--volume")
    cathode = CathodeSettings(
        shape=shape if volume is not None else (1, *shape), diameter=diameter, spread=spread, fraction=fraction,
        touching=touching, cracked=cracked, shattered=shattered, crack_width=crack_width,
        detachment=_numbers(detachment, "--detachment"), noise=noise, seed=seed,
    )  # fmt: skip
    run = CathodeRun(None if volume is not None else images, cathode, voxel_size, kind)
    with show_progress() as progress:
        path = simulate_cathodes(run, out, resume=resume, overwrite=overwrite, progress=progress)
    counts = read_json(path / "run.json").get("particles")
    if counts is not None:
        typer.echo(f"{sum(counts.values())} sections of particles in {len(counts)} slices.")
    typer.echo(f"Written: {path}")


def _lengths(text: str, count: int, option: str) -> tuple[int, ...]:
    """'712x1024' -> (712, 1024); one number stands for all."""
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts) or len(parts) not in (1, count):
        names = "planes x rows x columns" if count == 3 else "rows x columns"
        raise typer.BadParameter(f"write {names}. Received: {text!r}", param_hint=option)
    return tuple(int(part) for part in parts) * (count if len(parts) == 1 else 1)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"write numbers with commas. Received: {text!r}", param_hint=option) from None
