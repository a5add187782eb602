"""Annotated images to a Mask R-CNN, its detections, a table and a report: set the options, then run this file.

    python notebooks/StartParticles.py
    python notebooks/StartParticles.py DATA=images ANNOTATIONS=via.json IMAGES=new OUT=RESULT MINUTES=30

Option names of the older script (dataset, weights, logs, epochs, learning_rate) are understood; weights may be the
`.keras` file of an earlier training. Started again after an interruption, it goes on where it stopped.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import ast
import logging
from pathlib import Path

from keras_microseg.checks import UserError
from keras_microseg.workflows.particle_train import ParticleTrainSettings, train_particles
from keras_microseg.workflows.segment_images import segment

OPTIONS = {
    "DATA": "DATA",  # folder with images/ and labels/, or images and an annotation file (VIA, COCO)
    "ANNOTATIONS": None,  # annotation file or folder, when it does not lie in DATA
    "PRESET": "light",  # a CPU; "default" or "gpu": ResNet-50
    "MINUTES": None,  # time for the training; None: 10 to 35 for "light", by the amount of images
    "EPOCHS": None,
    "LEARNING_RATE": None,
    "WEIGHTS": None,  # start from this model
    "IMAGES": None,  # find particles here; None: in the images of DATA
    "PIXEL_SIZE": None,  # "0.65 um"; None takes it from the files
    "MODEL_DIR": "MODEL",
    "OUT": "RESULT",
}
OLD_NAMES = {"dataset": "DATA", "weights": "WEIGHTS", "logs": "MODEL_DIR", "epochs": "EPOCHS",
             "learning_rate": "LEARNING_RATE"}  # fmt: skip


def read_options(arguments: list[str]) -> dict:
    """`OPTIONS`, changed by NAME=value from the command line."""
    options = dict(OPTIONS)
    for argument in arguments:
        name, _, value = argument.partition("=")
        name = OLD_NAMES.get(name.lower().lstrip("-"), name)
        if name not in options:
            raise UserError(f"Unknown option {name!r}. There are {', '.join([*options, *OLD_NAMES])}.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value  # plain text
    return options


def main(arguments: list[str]) -> int:
    """Train (or go on), detect, report; 0, or 1 when something failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = read_options(arguments)
        names = {"MINUTES": "minutes", "EPOCHS": "epochs", "LEARNING_RATE": "learning_rate", "WEIGHTS": "weights",
                 "ANNOTATIONS": "annotations"}  # fmt: skip
        changes = {new: options[old] for old, new in names.items() if options[old] is not None}
        data = str(options["DATA"])
        settings = ParticleTrainSettings.of_preset(data, options["PRESET"], **changes)
        trained = train_particles(settings, options["MODEL_DIR"], resume=True)
        images = options["IMAGES"] or (Path(data) / "images" if (Path(data) / "images").is_dir() else data)
        results = segment(
            images, options["OUT"], model=str(trained.model_path), pixel_size=options["PIXEL_SIZE"], resume=True
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(results.table)} particles. Report: {results.report_path}")
    for failure in results.failures:
        print(failure.message, file=sys.stderr)
    return int(bool(results.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
