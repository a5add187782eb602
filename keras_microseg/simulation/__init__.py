"""Particles, layouts and micrographs with exactly known truth."""

from keras_microseg.simulation.particles import SHAPES, Shapes, draw_shapes, shapes_from_masks
from keras_microseg.simulation.placement import Layout, PlacementSettings, Raster, lognormal_diameters, place, rasterize
from keras_microseg.simulation.render import PRESETS, Micrograph, simulate_micrograph

__all__ = [
    "PRESETS",
    "SHAPES",
    "Layout",
    "Micrograph",
    "PlacementSettings",
    "Raster",
    "Shapes",
    "draw_shapes",
    "lognormal_diameters",
    "place",
    "rasterize",
    "shapes_from_masks",
    "simulate_micrograph",
]
