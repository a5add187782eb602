"""A tomography volume to a table of objects and a report: set the options, then run this file.

    python notebooks/StartTomography.py
    python notebooks/StartTomography.py SOURCE=slices OUT=RESULT DIAMETER=62 VOXEL_SIZE="0.65 um"

With MODEL=train a network is trained on LABELS, or, without them, on an automatic mask. Names of the options of older
scripts (input_image, input_mask, chunk_size, batch_size, epochs, num_z_slices) are understood. Started again after an
interruption, it goes on where it stopped.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import ast
import logging

from keras_microseg.checks import UserError
from keras_microseg.workflows import tomography

OPTIONS = {
    "SOURCE": "SLICES",  # a folder of slices, a TIFF stack, HDF5, Zarr, .npy
    "MODEL": "spheres3d",  # the shipped model of spheres, model.keras of an earlier training, or "train"
    "LABELS": None,  # labels or mask for MODEL="train"; None: an automatic mask
    "LABELS_ARE": "mask",  # "mask" or "instances"
    "DIAMETER": None,  # typical diameter of the objects, voxels
    "VOXEL_SIZE": None,  # "0.65 um", or "2 x 0.65 x 0.65 um" (z, y, x); None takes it from the files
    "PRESET": "fast",  # of the training: "fast" (minutes on a CPU), "standard", "gpu", "paper"
    "PATCH": None,  # training patches, voxels, such as (32, 64, 64); None: the preset's
    "EPOCHS": None,
    "BATCH_SIZE": None,
    "SLICES": None,  # train on the first so many slices only
    "MAX_RAM": "2GB",
    "OUT": "RESULT",
}
OLD_NAMES = {
    "input_image": "SOURCE", "input_mask": "LABELS", "chunk_size": "PATCH", "batch_size": "BATCH_SIZE",
    "epochs": "EPOCHS", "num_z_slices": "SLICES", "output_path": "OUT",
}  # fmt: skip


def read_options(arguments: list[str]) -> dict:
    """`OPTIONS`, changed by NAME=value from the command line."""
    options = dict(OPTIONS)
    for argument in arguments:
        name, _, value = argument.partition("=")
        old = OLD_NAMES.get(name.lower())
        if old is None and name not in options:
            raise UserError(f"Unknown option {name!r}. There are {', '.join([*options, *OLD_NAMES])}.")
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # plain text
        options[old or name] = value
        if name.lower() == "chunk_size":
            options["PATCH"] = (value, 64, 64)
        if name.lower() == "input_mask":
            options["MODEL"] = "train"
    return options


def main(arguments: list[str]) -> int:
    options = read_options(arguments)
    training = {
        "patch": options["PATCH"], "epochs": options["EPOCHS"], "batch_size": options["BATCH_SIZE"],
        "slices": options["SLICES"],
    }  # fmt: skip
    training = {name: value for name, value in training.items() if value is not None}
    settings = tomography.TomographySettings(
        str(options["SOURCE"]), str(options["MODEL"]), options["LABELS"], options["LABELS_ARE"], options["DIAMETER"],
        preset=options["PRESET"], train=training, voxel_size=options["VOXEL_SIZE"], max_ram=options["MAX_RAM"],
    )  # fmt: skip
    out = str(options["OUT"])
    folder = tomography.run(settings, out, resume=os.path.exists(os.path.join(out, "manifest.json")))
    print(f"Table: {folder.path / 'tables' / 'particles.csv'}\nReport: {folder.path / 'report.html'}")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
