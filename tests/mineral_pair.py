"""A simulated micrograph and mineral map on disk, as two instruments would leave them."""

import dataclasses

from keras_microseg import io
from keras_microseg.image import PixelSize
from keras_microseg.io.palettes import Mineral, Palette, write_palette
from keras_microseg.simulation.rocks import COLOURS, MINERALS, Rock, RockSettings

SETTINGS = RockSettings(
    (1000, 960), seed=5, grain_size=48, scale=4, pitch=(90, 90), sem_field=250, charging=0, mixing=0.1
)
DENSITIES = (0, 0, 2.65, 2.62, 2.6, 2.56, 4.5)


def write_pair(folder, settings=SETTINGS, **changes):
    """`sem.tif` (0.5 um), `map.png` and `palette.csv` in `folder`; returns the `Rock`."""
    import numpy as np

    rock = Rock(dataclasses.replace(settings, **changes))
    io.write_image(folder / "sem.tif", rock.sem[...], pixel_size=PixelSize((0.5, 0.5), "um"))
    io.write_image(folder / "map.png", np.array(COLOURS, np.uint8)[rock.mineral_map[...]])
    minerals = tuple(
        Mineral(k, name, COLOURS[k], density=DENSITIES[k], micro_porosity=float(name == "pore"))
        for k, name in enumerate(MINERALS)
    )
    write_palette(folder / "palette.csv", Palette(minerals))
    return rock
