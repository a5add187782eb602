"""Commands of `keras-microseg filament ...` that need a network: train, predict, search, run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_microseg.cli.filament import (
    FrameRate,
    Length,
    Names,
    Videos,
    ZeroFrame,
    parse_length,
    say_results,
    video_options,
)
from keras_microseg.cli.shared import (
    Backend,
    Out,
    Overwrite,
    PixelSizeOption,
    Resume,
    examples,
    list_failures,
    show_progress,
    use_backend,
)

app = typer.Typer()

Data = Annotated[Path, typer.Argument(help="Folder of labelled videos, one folder each.")]
Preset = Annotated[str, typer.Option(help="cpu (small, minutes), paper (as published), gpu.")]
Train = Annotated[list[str] | None, typer.Option("--train", help="Video to train on; repeat. Default: as published.")]
Validation = Annotated[
    list[str] | None,
    typer.Option("--validation", help="Video that chooses the best epoch; repeat. Default: as published."),
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting, like epochs=10, optimizer.learning_rate=1e-3, network.features=8."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A .keras file of `filament train`."),
]
Mode = Annotated[
    str, typer.Option(help="Partner of a frame: 'ensemble' of all frames, 'backward' (last), 'forward', 'consecutive'.")
]
Votes = Annotated[str, typer.Option(help="'soft' averages probabilities, 'hard' votes of masks (as published).")]
Published = Annotated[
    bool, typer.Option("--published", help="Exactly as published: hard votes, first frame of a pair, nothing removed.")
]
Flips = Annotated[int, typer.Option(help="Average over 4 mirror images, or 8 with turns: slower, steadier.")]
Follow = Annotated[
    bool,
    typer.Option("--follow/--keep-all", help="Drop pieces that lie where the filament was not in the frame before."),
]
Partners = Annotated[int | None, typer.Option(help="Partners of each frame in an ensemble. Default: all.")]


@app.command(
    epilog=examples(
        "keras-microseg filament train DATA --out MODEL",
        "keras-microseg filament train DATA --out UNET --set kind=frame_unet --set network.tasks=A1",
        "keras-microseg filament train DATA --out MODEL --preset paper --initial UNET/model.keras",
        "keras-microseg filament train DATA --out MODEL --resume",
    )
)
def train(
    data: Data,
    out: Out,
    preset: Preset = "cpu",
    train: Train = None,
    validation: Validation = None,
    initial: Annotated[
        Path | None, typer.Option(help="A U-Net (kind=frame_unet) whose weights the branch starts from.")
    ] = None,
    change: Change = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a delta-net, or its U-Net baseline, on labelled videos."""
    use_backend(backend)
    from keras_microseg.workflows import filament_train

    settings = _settings(preset, train, validation, initial, change)
    with show_progress() as progress:
        done = filament_train.train(data, out, settings, resume=resume, overwrite=overwrite, progress=progress)
    for name, value in done.scores.items():
        typer.echo(f"{name}: {value:.4f}")
    typer.echo(f"Model: {done.model_path}")


@app.command(
    epilog=examples(
        "keras-microseg filament predict DATA --name 201 --name 203 --model MODEL/model.keras --out RESULT",
        "keras-microseg filament predict 201 --model MODEL/model.keras --out RESULT --mode backward --published",
    )
)
def predict(
    videos: Videos,
    out: Out,
    model: Model = None,
    mode: Mode = "ensemble",
    votes: Votes = "soft",
    published: Published = False,
    flips: Flips = 1,
    partners: Partners = None,
    follow: Follow = True,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write probability maps.")] = False,
    name: Names = None,
    pixel_size: PixelSizeOption = None,
    frame_rate: FrameRate = None,
    zero_frame: ZeroFrame = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Masks of every frame: one 0/255 PNG per frame and task in OUT/predictions, black = carbon."""
    use_backend(backend)
    from keras_microseg.workflows import filament_change

    settings = filament_change.FilamentSettings(
        tuple(map(str, videos)), tuple(name or ()), model, mode=_mode(mode, votes, published, flips, partners),
        probabilities=probabilities, video=video_options(pixel_size, frame_rate, zero_frame, "black", False),
        follow=follow and not published,
    )  # fmt: skip
    with show_progress() as progress:
        folder = filament_change.run(
            settings, out, measure=False, resume=resume, overwrite=overwrite, progress=progress
        )
    for video, facts in folder.facts("predict").items():
        empty = ", ".join(f"{count} without {task}" for task, count in facts["empty"].items())
        typer.echo(f"{video}: {facts['frames']} frames, {empty}")
    typer.echo(f"Masks: {folder.path / 'predictions'}")
    list_failures(folder.failures())


@app.command(
    epilog=examples(
        "keras-microseg filament run DATA --name 201 --name 203 --model MODEL/model.keras --out RESULT",
        "keras-microseg filament run NEW_VIDEOS --data LABELLED --out RESULT",
    )
)
def run(
    videos: Videos,
    out: Out,
    model: Model = None,
    data: Annotated[Path | None, typer.Option(help="Labelled videos to train a model on.")] = None,
    preset: Preset = "cpu",
    mode: Mode = "ensemble",
    votes: Votes = "soft",
    published: Published = False,
    flips: Flips = 1,
    partners: Partners = None,
    follow: Follow = True,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write probability maps.")] = False,
    name: Names = None,
    length: Length = None,
    length_method: Annotated[str, typer.Option(help="Length from the 'axis' or from the visible 'columns'.")] = "axis",
    monotone: Annotated[bool, typer.Option("--monotone", help="The filament's area never grows.")] = False,
    pixel_size: PixelSizeOption = None,
    frame_rate: FrameRate = None,
    zero_frame: ZeroFrame = None,
    backend: Backend = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """From videos to masks, areas over time, rate laws and a report."""
    use_backend(backend)
    from keras_microseg.workflows import filament_change

    settings = filament_change.FilamentSettings(
        tuple(map(str, videos)), tuple(name or ()), model,
        None if data is None else str(data), preset, _mode(mode, votes, published, flips, partners), probabilities,
        video_options(pixel_size, frame_rate, zero_frame, "black", False),
        {"length": parse_length(length), "length_method": length_method, "monotone": monotone},
        follow=follow and not published,
    )  # fmt: skip
    with show_progress() as progress:
        folder = filament_change.run(settings, out, resume=resume, overwrite=overwrite, progress=progress)
    say_results(folder)


@app.command(
    epilog=examples(
        "keras-microseg filament search DATA --out SEARCH --trials 30",
        "keras-microseg filament search DATA --out SEARCH --vary optimizer.learning_rate=1e-4:1e-2:log "
        "--vary network.features=8,16,24",
        "keras-microseg filament search DATA --out SEARCH --workers 8 --scheduler tcp://host:8786",
    )
)
def search(
    data: Data,
    out: Out,
    preset: Preset = "cpu",
    train: Train = None,
    validation: Validation = None,
    change: Change = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="What to vary: name=low:high, name=low:high:log, or name=value,value. Default: learning rate "
                     "and batch size."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials in all, also those of earlier calls in the same folder.")] = 100,
    pruner: Annotated[str, typer.Option(help="'halving', 'median' or 'none'.")] = "halving",
    grace: Annotated[int, typer.Option(help="Epochs that every trial may run.")] = 10,
    workers: Annotated[int, typer.Option(help="Trials at a time.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler. Default: this machine.")] = None,
    storage: Annotated[str | None, typer.Option(help="Database URL. Default: a file in OUT.")] = None,
    backend: Backend = None,
) -> None:  # fmt: skip
    """Find good settings of `filament train`; call it again to go on. Needs: pip install "keras_microseg[search]"."""
    use_backend(backend)
    from keras_microseg.workflows import filament_search

    settings = _settings(preset, train, validation, None, change)
    space = {key: _range(key, text) for key, text in map(_split, vary)} if vary else None
    found = filament_search.search(
        data, out, settings, space=space, num_trials=trials, pruner=pruner, grace=grace, workers=workers,
        scheduler=scheduler, storage=storage,
    )  # fmt: skip
    typer.echo(f"Best score {found.score:.4f} with {found.best}")
    typer.echo(f"Report: {out / 'search.html'}")


def _settings(
    preset: str, train: list[str] | None, validation: list[str] | None, initial: Path | None, change: list[str] | None
) -> Any:
    from keras_microseg.workflows import filament_train

    changes: dict[str, Any] = {key: _value(key, text) for key, text in map(_split, change or ())}
    for key, given in (("train", train), ("validation", validation)):
        if given:
            changes[key] = tuple(given)
    if initial is not None:
        changes["initial"] = str(initial)
    return filament_train.preset(preset, **changes)


def _mode(mode: str, votes: str, published: bool, flips: int, partners: int | None) -> dict[str, Any]:
    if published:
        return {"mode": mode, "votes": "hard", "swapped": False, "second": False, "inside": False, "visible": False}
    return {"mode": mode, "votes": votes, "flips": flips, "num_partners": partners}


def _split(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise typer.BadParameter(f"write name=value. Received: {text!r}")
    return name.strip(), value.strip()


def _value(name: str, text: str) -> Any:
    """A number, True, None, a tuple, or else the text itself; names ending in `tasks` are always several."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if name.endswith("tasks") and isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value


def _range(name: str, text: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) == 1:
        return {"values": tuple(_value("", part) for part in text.split(","))}
    low, high = (_value(name, part) for part in parts[:2])
    if len(parts) > 3 or not all(isinstance(v, (int, float)) for v in (low, high)) or parts[2:] not in ([], ["log"]):
        raise typer.BadParameter(f"write low:high, low:high:log or value,value. Received: {text!r}", param_hint=name)
    integer = isinstance(low, int) and isinstance(high, int)
    return {"low": low, "high": high, "log": len(parts) == 3, "integer": integer}
