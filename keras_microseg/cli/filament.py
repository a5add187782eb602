"""Commands on videos of burning filaments: `keras-microseg filament ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.shared import (
    Group,
    Out,
    Overwrite,
    PixelSizeOption,
    Resume,
    Seed,
    examples,
    list_failures,
    open_console,
    parse_size,
    show_progress,
)

app = typer.Typer(
    cls=Group,
    help="Videos of burning filaments: masks, areas over time, rate laws, report.",
    no_args_is_help=True,
)

Videos = Annotated[
    list[Path],
    typer.Argument(help="Videos: folders of frames, stacks, video files, or one folder that holds a folder per video."),
]
Names = Annotated[list[str] | None, typer.Option("--name", "-n", help="Only this video; may be repeated.")]
FrameRate = Annotated[
    float | None, typer.Option("--frame-rate", help="Frame numbers per second. Default: from the files or their names.")
]
ZeroFrame = Annotated[
    int | None, typer.Option("--zero-frame", help="Number of the frame at time 0. Default: 88 in the data set's names.")
]
Foreground = Annotated[str, typer.Option(help="Carbon is 'black' (default) or 'white' in mask files.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out frames that lack a mask.")]
Length = Annotated[
    str | None,
    typer.Option("--length", help="Length of the segment in pixels, 148.8, or per video: 301=148.8,302=226.6."),
]


@app.command(
    epilog=examples(
        "keras-microseg filament prepare RAW --windows windows.csv --out DATA",
        "keras-microseg filament prepare RAW --size 256x256 --out DATA",
    )
)
def prepare(
    videos: Videos,
    out: Out,
    windows: Annotated[
        Path | None,
        typer.Option(help="Table with the columns frame, y, x and if wanted left, right, polygon; an ImageJ ROI list; "
                     "or a folder of tables NAME.csv. Default: follow the masks of the filament."),
    ] = None,
    size: Annotated[str, typer.Option(help="Rows x columns of the window.")] = "256x256",
    fill: Annotated[int, typer.Option(help="Grey outside the chosen segment.")] = 178,
    margin: Annotated[int, typer.Option(help="Pixels kept beside the filament when masks are followed.")] = 0,
    name: Names = None,
    pixel_size: PixelSizeOption = None,
    frame_rate: FrameRate = None,
    zero_frame: ZeroFrame = None,
    foreground: Foreground = "black",
    skip_missing: SkipMissing = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Cut network input out of raw frames and layers: window, cut lines, polygon. Needs no keras."""
    from keras_microseg.workflows import filament_prepare

    settings = filament_prepare.PrepareSettings(
        _texts(videos), tuple(name or ()), None if windows is None else str(windows), parse_size(size), fill, margin,
        video_options(pixel_size, frame_rate, zero_frame, foreground, skip_missing),
    )  # fmt: skip
    with show_progress() as progress:
        folder = filament_prepare.prepare(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    for video, facts in folder.facts("prepare").items():
        typer.echo(f"{video}: {facts['frames']} frames of {facts['shape'][0]} x {facts['shape'][1]} pixels")
    typer.echo(f"Network input: {folder.path}")
    list_failures(folder.failures())


@app.command(
    epilog=examples(
        "keras-microseg filament measure DATA/103 --out RESULT",
        "keras-microseg filament measure DATA --masks PREDICTIONS --out RESULT --length 103=152.8",
    )
)
def measure(
    videos: Videos,
    out: Out,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of the masks (area1/, area2/, or a folder per video with these).")
    ] = None,
    name: Names = None,
    length: Length = None,
    length_method: Annotated[str, typer.Option(help="Length from the 'axis' or from the visible 'columns'.")] = "axis",
    normalization: Annotated[
        str, typer.Option(help="Conversion by 'range' (Vmax to Vmin, as published) or from the 'start' volume to 0.")
    ] = "range",
    monotone: Annotated[bool, typer.Option("--monotone", help="The filament's area never grows.")] = False,
    pixel_size: PixelSizeOption = None,
    frame_rate: FrameRate = None,
    zero_frame: ZeroFrame = None,
    foreground: Foreground = "black",
    skip_missing: SkipMissing = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Masks to areas over time, volumes, rate laws, and a report. Needs no keras."""
    from keras_microseg.workflows import filament_measure

    settings = filament_measure.FilamentMeasureSettings(
        _texts(videos), tuple(name or ()), None if masks is None else str(masks),
        video_options(pixel_size, frame_rate, zero_frame, foreground, skip_missing),
        {"length": parse_length(length), "length_method": length_method, "normalization": normalization,
         "monotone": monotone},
    )  # fmt: skip
    with show_progress() as progress:
        folder = filament_measure.measure(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_results(folder)


@app.command(
    epilog=examples(
        "keras-microseg filament evaluate RESULT DATA",
        "keras-microseg filament evaluate PREDICTIONS DATA --name 103 --name 301 --out scores.json",
    )
)
def evaluate(
    predicted: Annotated[Path, typer.Argument(help="Folder of a filament run, or of masks NAME/area1/.")],
    truth: Annotated[list[Path], typer.Argument(help="Videos with true masks, or one folder of them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the scores to this .json file.")] = None,
    name: Names = None,
    change: Annotated[bool, typer.Option("--change", help="Also the four change classes (slow).")] = False,
    pixel_size: PixelSizeOption = None,
    frame_rate: FrameRate = None,
    zero_frame: ZeroFrame = None,
    foreground: Foreground = "black",
) -> None:
    """Score masks against the truth: the published macro F1, and F1, IoU, HD95, areas of carbon. Needs no keras."""
    from keras_microseg.workflows import filament_evaluate

    with show_progress() as progress:
        scores = filament_evaluate.evaluate(
            predicted, truth, out, names=name or (), change=change, progress=progress,
            video=video_options(pixel_size, frame_rate, zero_frame, foreground, False),
        )  # fmt: skip
    from rich.table import Table

    console = open_console(stdout=True)
    table = Table(title="Frames from time 0 on; macro F1 as published, all others of carbon only")
    columns = {
        "published_f1": ("Macro F1", ".5f"), "foreground_f1": ("F1", ".4f"), "precision": ("Precision", ".3f"),
        "recall": ("Recall", ".3f"), "iou": ("IoU", ".3f"), "hd95": ("HD95", ".2f"),
        "area_error": ("Area error", ".1%"), "area_bias": ("Area bias", "+.1%"), "change_f1": ("Change F1", ".5f"),
    }  # fmt: skip
    shown = {key: value for key, value in columns.items() if key in scores.table}
    for heading in ("Video", "Task", "Frames"):
        table.add_column(heading)
    for heading, _ in shown.values():
        table.add_column(heading, justify="right")
    for row in scores.table.to_dict("records"):
        cells = [format(row[key], form) for key, (_, form) in shown.items()]
        table.add_row(row["video"], row["task"], str(row["frames"]), *cells)
    console.print(table)
    for video, error in scores.volumes.items():
        typer.echo(f"{video}: mean error of the wall volume {error:.1%} of its first value")
    if out:
        typer.echo(f"Scores: {out}")


@app.command(epilog=examples("keras-microseg filament report RESULT"))
def report(
    result: Annotated[Path, typer.Argument(help="Folder of filament measure or filament run.")],
) -> None:
    """Write tables and report of a finished run again, from its masks. Needs no keras."""
    from keras_microseg.workflows import filament_measure

    typer.echo(f"Report: {filament_measure.rebuild_report(result)}")


@app.command(epilog=examples("keras-microseg filament simulate --count 6 --out DATA"))
def simulate(
    out: Out,
    count: Annotated[int, typer.Option(help="How many videos.")] = 3,
    frames: Annotated[int, typer.Option(help="Frames of each.")] = 20,
    size: Annotated[str, typer.Option(help="Rows x columns of a frame.")] = "256x256",
    mode: Annotated[str | None, typer.Option(help="catalytic, cooperative, non-catalytic; default all.")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Make videos of burning filaments with exactly known masks, volumes and rate law. Needs no keras."""
    from keras_microseg.workflows import filament_prepare

    settings = filament_prepare.SimulateFilamentSettings(count, frames, parse_size(size), mode, seed)
    with show_progress() as progress:
        folder = filament_prepare.simulate(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    typer.echo(f"{count} videos: {folder.path}")
    list_failures(folder.failures())


def video_options(
    pixel_size: str | None, frame_rate: float | None, zero_frame: int | None, foreground: str, skip_missing: bool
) -> dict[str, Any]:
    """Arguments of `open_series` that were given."""
    options = {"pixel_size": pixel_size, "frame_rate": frame_rate, "zero_frame": zero_frame,
               "foreground": None if foreground == "black" else foreground,
               "skip_missing": skip_missing or None}  # fmt: skip
    return {key: value for key, value in options.items() if value is not None}


def parse_length(text: str | None) -> float | dict[str, float] | None:
    """`148.8`, or `301=148.8,302=226.6`."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        return {key.strip(): float(value) for key, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        message = f"write a number of pixels, or video=number,... Received: {text!r}"
        raise typer.BadParameter(message, param_hint="--length") from None


def say_results(folder: Any) -> None:
    """What `measure` and `run` found, and where it lies."""
    for video, facts in folder.facts("measure").items():
        avrami = facts["avrami"]
        law = facts["best_law"]
        found = f"t50 {facts['t50']:.4g}, best law {law}; Avrami k {avrami['k']:.3g}, n {avrami['n']:.3g}" if law and \
            avrami["k"] is not None else facts["reason"] or f"best law {law}"  # fmt: skip
        typer.echo(f"{video}: {facts['frames']} frames, {found}")
        for warning in facts["warnings"]:
            typer.echo(f"Note: {video}: {warning}", err=True)
    typer.echo(f"Report: {folder.path / 'report.html'}")
    list_failures(folder.failures())


def _texts(paths: list[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)
