"""Particles from micrographs without manual labels: set the options, then run this file.

    python notebooks/StartProcess.py
    python notebooks/StartProcess.py INPUT_IMAGES=my/images INPUT_MASKS=my/outlines OUT=RESULT PRESET=fast

Started again after an interruption, it goes on where it stopped. Options that are left out are those of the preset;
every setting of `keras_microseg.workflows.sem_particles.Settings` can be named as well (translation_epochs=30).
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import ast
import logging

from keras_microseg.checks import UserError
from keras_microseg.workflows import sem_particles

OPTIONS = {
    "INPUT_IMAGES": "Input_Images",  # micrographs of one kind, any sizes, 20 or more
    "INPUT_MASKS": "Input_Masks",  # single particles, white on black, one per file; None = shapes by formula
    "OUT": "RESULT",  # folder for everything
    "PRESET": "fast",  # "fast": two CPU cores, under an hour; "gpu"; "paper": as published
    # "DARK_BACKGROUND": True,  # bright particles on dark ground; found from the images when left out
    # "NUM_SIMULATED_MASKS": 1000,
    # "MAX_PARTICLE_OVERLAP": 0.5,
    # "WGAN_EPOCHS": 1000,
    # "CYCLEGAN_EPOCHS": 50,
    # "UNET_EPOCHS": 50,
    # "seed": 0,
}


def read_options(arguments: list[str]) -> dict:
    """`OPTIONS`, changed by NAME=value from the command line."""
    options = dict(OPTIONS)
    for argument in arguments:
        name, _, value = argument.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def show(step: str, done: float, total: int, item: str) -> None:
    print(f"\r{step:<10} {int(done)}/{total} {item:<40}", end="\n" if done == total else "", flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    options = read_options(sys.argv[1:])
    out, preset = options.pop("OUT"), options.pop("PRESET")
    try:
        settings = sem_particles.Settings.from_legacy(preset, **options)
        outcome = sem_particles.run(settings, out, resume=True, progress=show)
    except UserError as error:
        sys.exit(f"{error}")
    for text in [*outcome.warnings, *(failure.message for failure in outcome.failures)]:
        print("NOTE", text)
    print(f"Network: {outcome.model_path}\nParticles: {outcome.particles_path}\nReport: {outcome.report_path}")
    sys.exit(1 if outcome.failures else 0)
