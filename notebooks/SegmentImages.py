"""Segment and measure a folder of micrographs: fill in the settings, then run this file."""

import os

os.environ.setdefault("KERAS_BACKEND", "")  # "jax", "torch", "tensorflow"; "": the first that is installed

import dataclasses

import keras_microseg
from keras_microseg.workflows.segment_images import SegmentSettings

settings = SegmentSettings(
    images=("IMAGES",),  # files and folders
    method="network",  # or "classical"
    pixel_size=None,  # "1.2 nm"; None takes it from the files
    info_bar="auto",  # first row of the data bar, None for none
    polarity="auto",  # "bright" or "dark"
    min_diameter=None,  # "5 nm"
)
out = "RESULT"

if __name__ == "__main__":
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    results = keras_microseg.segment(list(options.pop("images")), out, **options, resume=os.path.isdir(out))
    print("\n".join(results.highlights()))
    for failure in results.failures:
        print("FAILED", failure.message)
    print(results.report_path)
