"""Particles, layouts and micrographs with exactly known truth."""

from keras_microseg.simulation.masks import MaskSettings, Particles, SimulatedMask, simulate_mask
from keras_microseg.simulation.outlines import OutlineSet, clean_outlines, read_outlines
from keras_microseg.simulation.particles import SHAPES, Shapes, draw_shapes, shapes_from_masks
from keras_microseg.simulation.phantoms import Phantom, PhantomPlan, PhantomSettings, make_phantom, plan_phantom
from keras_microseg.simulation.placement import Layout, PlacementSettings, Raster, lognormal_diameters, place, rasterize
from keras_microseg.simulation.render import PRESETS, Micrograph, simulate_micrograph
from keras_microseg.simulation.rocks import Rock, RockSettings

__all__ = [
    "PRESETS",
    "SHAPES",
    "Layout",
    "MaskSettings",
    "Micrograph",
    "Phantom",
    "PhantomPlan",
    "PhantomSettings",
    "OutlineSet",
    "Particles",
    "PlacementSettings",
    "Raster",
    "Rock",
    "RockSettings",
    "Shapes",
    "SimulatedMask",
    "clean_outlines",
    "draw_shapes",
    "lognormal_diameters",
    "make_phantom",
    "place",
    "plan_phantom",
    "rasterize",
    "read_outlines",
    "shapes_from_masks",
    "simulate_mask",
    "simulate_micrograph",
]
