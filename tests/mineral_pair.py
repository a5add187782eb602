"""A small simulated micrograph and mineral map on disk."""

import dataclasses

from keras_microseg.simulation.rock_files import write_rock
from keras_microseg.simulation.rocks import RockSettings

SETTINGS = RockSettings(
    (1000, 960), seed=5, grain_size=48, scale=4, pitch=(90, 90), sem_field=250, charging=0, mixing=0.1
)


def write_pair(folder, settings=SETTINGS, **changes):
    """`sem.tif` (0.5 um), `map.png` and `palette.csv` in `folder`; returns the `Rock`."""
    return write_rock(folder, dataclasses.replace(settings, **changes))
