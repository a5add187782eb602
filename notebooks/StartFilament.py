"""Videos of burning filaments to masks, curves, rate laws and a report: set the options, then run this file.

    python notebooks/StartFilament.py
    python notebooks/StartFilament.py VIDEOS=my/videos DATA=labelled OUT=RESULT PRESET=cpu

With DATA a network is trained first, on the labelled videos there. Started again after an interruption, it goes
on where it stopped.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import ast
import logging

from keras_microseg.checks import UserError
from keras_microseg.workflows import filament_change

OPTIONS = {
    "VIDEOS": "Videos",  # a folder per video (frames in img/), a stack, or a video file
    "NAMES": (),  # only these videos, for example ("201", "203")
    "MODEL": None,  # model.keras of an earlier training
    "DATA": None,  # labelled videos (img/, area1/, area2/) to train a network on, when there is none
    "PRESET": "cpu",  # of the training: "cpu" (small), "gpu", "paper" (as published)
    "MODE": "ensemble",  # partner of a frame: "ensemble", "backward", "forward", "consecutive"
    "FLIPS": 1,  # 8: average over mirrored and turned frames; slower
    "LENGTH": None,  # of the segment in px: 148.8, or {"301": 148.8, "302": 226.6}; None: along its axis
    "PIXEL_SIZE": None,  # "0.52 nm"; None takes it from the files
    "OUT": "RESULT",
}


def read_options(arguments: list[str]) -> dict:
    """`OPTIONS`, changed by NAME=value from the command line."""
    options = dict(OPTIONS)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options:
            raise UserError(f"Unknown option {name!r}. There are {', '.join(options)}.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    names = options["NAMES"]
    options["NAMES"] = tuple(str(name) for name in (names if isinstance(names, (tuple, list)) else (names,)))
    return options


def main(arguments: list[str]) -> int:
    options = read_options(arguments)
    settings = filament_change.FilamentSettings(
        (str(options["VIDEOS"]),),
        options["NAMES"],
        None if options["MODEL"] is None else str(options["MODEL"]),
        None if options["DATA"] is None else str(options["DATA"]),
        options["PRESET"],
        {"mode": options["MODE"], "flips": options["FLIPS"]},
        video={} if options["PIXEL_SIZE"] is None else {"pixel_size": options["PIXEL_SIZE"]},
        measure={"length": options["LENGTH"]},
    )
    out = str(options["OUT"])
    folder = filament_change.run(settings, out, resume=os.path.exists(os.path.join(out, "manifest.json")))
    for failure in folder.failures():
        print("FAILED", failure.message)
    print(f"Masks: {folder.path / 'predictions'}\nReport: {folder.path / 'report.html'}")
    return 1 if folder.failures() else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
