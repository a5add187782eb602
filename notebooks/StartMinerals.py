"""Micrograph and mineral map of one sample to modal mineralogy and a report: set the options, then run this file.

    python notebooks/StartMinerals.py
    python notebooks/StartMinerals.py SEM=sem.tif MAP=map.png PIXEL_SIZE=0.3um OUT=RESULT METHOD=thresholds

Without files a small rock is simulated, to show how it goes. Started again after an interruption, it goes on where it
stopped.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import ast
import logging

from keras_microseg.checks import UserError
from keras_microseg.simulation.rock_files import write_rock
from keras_microseg.simulation.rocks import RockSettings
from keras_microseg.workflows import mineral_run

OPTIONS = {
    "SEM": "",  # micrograph: any grey image, or raw pixels with a header beside them; "": simulate
    "MAP": "",  # colour-coded mineral map of the same sample
    "PIXEL_SIZE": None,  # of the micrograph, "0.3um"; None takes it from the file
    "PALETTE": None,  # table of the map's colours; None: the 24 colours of the package
    "METHOD": "network",  # or "thresholds": grey values only, no training
    "REFERENCES": (),  # tables to compare with: class, fraction, method
    "CLEAN": {},  # for example {"majority": 3, "islands": 4}
    "TILES": {},  # for example {"tile": 256, "split": "block"}
    "TRAIN": {},  # for example {"epochs": 30}
    "PREDICT": {},
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
    return options


def main(arguments: list[str]) -> None:
    options = read_options(arguments)
    sem, mineral_map, palette = (options[name] for name in ("SEM", "MAP", "PALETTE"))
    if not sem:
        if not os.path.exists("SIMULATED"):
            settings = RockSettings((2000, 2000), grain_size=60, scale=4, pitch=(90, 90), sem_field=500)
            write_rock("SIMULATED", settings)
        sem, mineral_map, palette = (f"SIMULATED/{name}" for name in ("sem.tif", "map.png", "palette.csv"))
    references = options["REFERENCES"]
    settings = mineral_run.MineralRunSettings(
        sem,
        mineral_map,
        options["METHOD"],
        options["PIXEL_SIZE"],
        palette,
        (references,) if isinstance(references, str) else tuple(references),
        clean=options["CLEAN"],
        tiles=options["TILES"],
        train=options["TRAIN"],
        predict=options["PREDICT"],
    )
    out = str(options["OUT"])
    folder = mineral_run.run(settings, out, resume=os.path.exists(os.path.join(out, "manifest.json")))
    print(f"Tables: {folder.path / 'tables'}\nReport: {folder.path / 'report.html'}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
