"""Commands of `keras-microseg mineral ...` around the network: clean, register, masks, tiles, quantify, report, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.shared import Backend, Out, Overwrite, Resume, Seed, examples, show_progress, use_backend

app = typer.Typer()

Sem = Annotated[Path, typer.Argument(help="Micrograph: any grey image, or raw pixels with a header beside them.")]
Map = Annotated[Path, typer.Argument(help="Colour-coded mineral map of the same sample.", metavar="MAP")]
PixelSize = Annotated[
    str | None,
    typer.Option("--pixel-size", "-p", help="Of the micrograph, like 0.3um; 'px' measures in pixels on purpose. "
                 "Default: from the file."),
]  # fmt: skip
Palette = Annotated[
    Path | None,
    typer.Option(help="CSV or JSON with id, name, colour and, if wanted, group, density, micro_porosity. "
                 "Default: the 24 colours that come with the package."),
]  # fmt: skip
Groups = Annotated[Path | None, typer.Option(help='Merge, JSON like {"clay": ["kaolinite", "illite"]}.')]
Majority = Annotated[int, typer.Option(help="Edge of the majority filter on the map, odd, px; 1 = none.")]
Islands = Annotated[int, typer.Option(help="Pieces of the map below so many px take the name of what is near.")]
Reduce = Annotated[
    int | None, typer.Option(help="Micrograph pixels per working pixel. Default: four to five per map pixel.")
]
References = Annotated[
    list[Path] | None,
    typer.Option("--reference", help="CSV with class, fraction (0 to 1) and, if wanted, method; may be repeated."),
]


@app.command(
    epilog=examples(
        "keras-microseg mineral clean sem.tif map.png --out CLEAN --pixel-size 0.3um",
        "keras-microseg mineral clean sem.raw map.png --out CLEAN --palette minerals.csv --groups merge.json",
    )
)
def clean(
    sem: Sem,
    mineral_map: Map,
    out: Out,
    palette: Palette = None,
    groups: Groups = None,
    tolerance: Annotated[float, typer.Option(help="Largest distance of a colour still taken for a mineral.")] = 0.0,
    majority: Majority = 1,
    islands: Islands = 0,
    mosaic: Annotated[bool, typer.Option("--mosaic/--no-mosaic", help="Look for the fields of the map.")] = True,
    fields: Annotated[bool, typer.Option("--fields/--no-fields", help="Even out fields of the micrograph.")] = True,
    reduce: Reduce = None,
    pixel_size: PixelSize = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Map to class numbers, its fields repaired; micrograph with black ground, even fields, working pixel size."""
    from keras_microseg.workflows import mineral_clean as workflow
    from keras_microseg.workflows.steps import read_json

    settings = workflow.CleanSettings(
        str(sem), str(mineral_map), _text(palette), _text(groups), tolerance, majority, islands, mosaic, fields, reduce,
        pixel_size,
    )  # fmt: skip
    with show_progress() as progress:
        folder = workflow.clean(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    facts = read_json(folder.path / workflow.FACTS)
    found, layout = facts["map"], facts["map"]["mosaic"]
    if layout:
        typer.echo(
            f"Fields of the map: pitch {layout['pitch']}, overlap {layout['overlap']}, shear {layout['shear']} px"
        )
    else:
        typer.echo(f"Fields of the map: none. {found.get('mosaic_note', '')}".strip())
    if found["unknown_pixels"]:
        text = f"{found['unknown_pixels']} pixels of {found['unknown_colours']} colours that are not in the palette"
        typer.echo(f"Note: {text} are ignored; see {folder.path / 'unknown_colours.csv'}", err=True)
    if found["absent_classes"]:
        typer.echo(f"Note: the map holds no {', '.join(found['absent_classes'])}.", err=True)
    typer.echo(f"Cleaned pair: {folder.path}")


@app.command(epilog=examples("keras-microseg mineral register CLEAN --out REGISTERED"))
def register(
    clean_dir: Annotated[Path, typer.Argument(help="Folder of `mineral clean`.", metavar="CLEAN")],
    out: Out,
    start: Annotated[
        str, typer.Option(help="'disc': from the round sample in both; 'extent': both show the same area.")
    ] = "disc",
    search: Annotated[float, typer.Option(help="How far the start may be off, map px.")] = 40.0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Where the map lies on the micrograph: transform as JSON, error figures, pictures to check."""
    from keras_microseg.workflows import mineral_register as workflow
    from keras_microseg.workflows.steps import read_json

    settings = workflow.RegisterSettings(str(clean_dir), start, search)
    with show_progress() as progress:
        folder = workflow.register(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    found = read_json(folder.path / "registration.json")
    typer.echo(
        f"Scale {found['scale']:.4f}, rotation {found['rotation_degrees']:.3f} degrees; error of held-out windows: "
        f"mean {found['held_out_mean']:.2f}, 95 % below {found['held_out_p95']:.2f} map px"
    )
    typer.echo(f"Transform: {folder.path / workflow.TRANSFORM}")


@app.command(epilog=examples("keras-microseg mineral masks CLEAN REGISTERED --out MASKS"))
def masks(
    clean_dir: Annotated[Path, typer.Argument(help="Folder of `mineral clean`.", metavar="CLEAN")],
    register_dir: Annotated[Path, typer.Argument(help="Folder of `mineral register`.", metavar="REGISTERED")],
    out: Out,
    margin: Annotated[float, typer.Option(help="Rim of the sample left out, map px.")] = 1.0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The classes of the map on the grid of the micrograph."""
    from keras_microseg.workflows import mineral_register as workflow

    settings = workflow.MaskSettings(str(clean_dir), str(register_dir), margin)
    with show_progress() as progress:
        folder = workflow.masks(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"Mask: {folder.path / workflow.MASK}")


@app.command(
    epilog=examples(
        "keras-microseg mineral tiles MASKS --out DATA --tile 256",
        "keras-microseg mineral tiles SAMPLE1 SAMPLE2 SAMPLE3 --out DATA --split leave-one-out --reduce 2 --soft",
    )
)
def tiles(
    samples: Annotated[list[Path], typer.Argument(help="Folders of `mineral masks`, one per sample.", metavar="MASKS")],
    out: Out,
    tile: Annotated[int, typer.Option(help="Edge of a tile, px after reduction.")] = 256,
    overlap: Annotated[float, typer.Option(help="Share of a tile that the next one repeats, 0 to 0.9.")] = 0.0,
    reduce: Annotated[int, typer.Option(help="Working pixels per pixel of the tiles.")] = 1,
    soft: Annotated[bool, typer.Option("--soft", help="Also write the share of each class in every pixel.")] = False,
    split: Annotated[str, typer.Option(help="block, sample, leave-one-out or none.")] = "block",
    validation: Annotated[float, typer.Option(help="Share that validates.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share that tests.")] = 0.0,
    guard: Annotated[int | None, typer.Option(help="Guard band, px. Default: a quarter of a tile.")] = None,
    min_known: Annotated[float, typer.Option(help="Tiles with less known pixels are left out.")] = 0.5,
    absent: Annotated[str, typer.Option(help="A class in no training tile: 'error' or 'allow'.")] = "error",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Cut training data: images, masks, classes, splits with a guard band, statistics."""
    from keras_microseg.workflows import mineral_tiles as workflow
    from keras_microseg.workflows.steps import read_json

    settings = workflow.TileSettings(
        tuple(map(str, samples)), tile, overlap, reduce, soft, min_known, split, validation, test, guard, absent, seed
    )
    with show_progress() as progress:
        folder = workflow.tiles(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for part, found in read_json(folder.path / workflow.TILES)["statistics"].items():
        total = max(sum(found["pixels"].values()), 1)
        shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in found["pixels"].items())
        typer.echo(f"{part}: {found['tiles']} tiles; {shares}")
    typer.echo(f"Training data: {folder.path}")


@app.command(
    epilog=examples(
        "keras-microseg mineral quantify MAPS/classes.ome.tif --classes DATA/classes.csv --out TABLES",
        "keras-microseg mineral quantify labels.png --classes classes.csv --pixel-size 1.5um --reference xrd.csv -o T",
    )
)
def quantify(
    class_map: Annotated[Path, typer.Argument(help="Map of class numbers: OME-TIFF, OME-Zarr, TIFF, PNG.")],
    out: Out,
    classes: Annotated[Path, typer.Option(help="Palette of its numbers: names, densities, micro-porosities.")],
    clean_dir: Annotated[
        Path | None, typer.Option("--sample", help="Folder of `mineral clean`, whose disc bounds the sample.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option(help="confusion.json of held-out regions: corrects the shares.")
    ] = None,
    correction: Annotated[str, typer.Option(help="'stratified' or 'inversion'.")] = "stratified",
    reference: References = None,
    pixel_size: PixelSize = None,
    block: Annotated[int | None, typer.Option(help="Edge of bootstrap blocks, px. Default: 15 mean chords.")] = None,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    grain_windows: Annotated[int, typer.Option(help="Windows in which grains are measured; 0 = none.")] = 9,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fractions and porosity with intervals, contacts, chords, grain sizes, of a map of any size."""
    from keras_microseg.workflows import mineral_quantify as workflow

    settings = workflow.QuantifySettings(
        str(class_map), str(classes), _text(clean_dir), _text(confusion), correction, tuple(map(str, reference or ())),
        pixel_size=pixel_size, block=block, confidence=confidence, grain_windows=grain_windows, seed=seed,
    )  # fmt: skip
    with show_progress() as progress:
        folder = workflow.quantify(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    _say_fractions(folder.path)
    typer.echo(f"Tables: {folder.path}")


@app.command(epilog=examples("keras-microseg mineral report TABLES --to report.html"))
def report(
    tables: Annotated[Path, typer.Argument(help="Folder of `mineral quantify`.", metavar="TABLES")],
    to: Annotated[Path, typer.Option("--to", help="The page to write.")] = Path("report.html"),
    run_dir: Annotated[
        Path | None, typer.Option("--run", help="Folder of `mineral run`: its pictures and errors go onto the page.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Mineral map",
) -> None:
    """One page with the map, fractions, curves, contacts and sizes."""
    from keras_microseg.workflows import mineral_report

    typer.echo(f"Report: {mineral_report.report(tables, to, run_dir=run_dir, title=title)}")


@app.command(
    epilog=examples(
        "keras-microseg mineral run sem.tif map.png --out RESULT --pixel-size 0.3um",
        "keras-microseg mineral run sem.tif map.png --out RESULT --method thresholds",
        "keras-microseg mineral run sem.tif map.png --out RESULT --config run.json",
    )
)
def run(
    sem: Sem,
    mineral_map: Map,
    out: Out,
    method: Annotated[str | None, typer.Option(help="'network' (default), or 'thresholds': no training.")] = None,
    palette: Palette = None,
    reference: References = None,
    pixel_size: PixelSize = None,
    config: Annotated[
        Path | None,
        typer.Option(help='JSON with settings of the steps, like {"tiles": {"tile": 256}, "train": {"epochs": 30}}.'),
    ] = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """From the raw pair to the report: clean, register, tiles, train, predict, evaluate, quantify."""
    from keras_microseg.workflows import mineral_run as workflow

    values: dict[str, Any] = {} if config is None else workflow.read_config(config)
    given = {"method": method, "palette": _text(palette), "pixel_size": pixel_size}
    values |= {name: value for name, value in given.items() if value is not None}
    if reference:
        values["references"] = tuple(map(str, reference))
    settings = workflow.MineralRunSettings(**{**values, "sem": str(sem), "mineral_map": str(mineral_map)})
    if settings.method == "network":
        use_backend(backend)
    with show_progress() as progress:
        folder = workflow.run(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    _say_fractions(folder.path / "tables")
    typer.echo(f"Report: {folder.path / 'report.html'}")


def _say_fractions(tables: Path) -> None:
    import pandas as pd

    from keras_microseg.workflows.mineral_quantify import QUANTITIES
    from keras_microseg.workflows.steps import read_json

    facts = read_json(tables / QUANTITIES)
    level = round(100 * facts["confidence"])
    for row in pd.read_csv(tables / "fractions.csv", comment="#").to_dict("records"):
        typer.echo(
            f"{row['class']}: {100 * row['share']:.2f} % ({level} %: {100 * row['low']:.2f} to {100 * row['high']:.2f})"
        )
    if "porosity" in facts:
        low, high = 100 * facts["porosity_low"], 100 * facts["porosity_high"]
        typer.echo(f"Porosity: {100 * facts['porosity']:.2f} % ({level} %: {low:.2f} to {high:.2f})")
    for note in facts["notes"]:
        typer.echo(f"Note: {note}", err=True)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
