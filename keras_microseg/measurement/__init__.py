"""Measuring particles in label images: sizes, shapes, grey values, distributions. Needs no network and no Keras."""

from keras_microseg.measurement.distributions import (
    SizeDistribution,
    miles_lantuejoul_weights,
    particles_needed,
    size_distribution,
    summarize_sizes,
)
from keras_microseg.measurement.lognormal import LognormalFit, fit_lognormal
from keras_microseg.measurement.particles import combine_tables, convert_table, label_particles, measure_particles
from keras_microseg.measurement.quantities import QUANTITIES, describe_quantities
from keras_microseg.measurement.shape import feret_diameters

__all__ = [
    "QUANTITIES",
    "LognormalFit",
    "SizeDistribution",
    "combine_tables",
    "convert_table",
    "describe_quantities",
    "feret_diameters",
    "fit_lognormal",
    "label_particles",
    "measure_particles",
    "miles_lantuejoul_weights",
    "particles_needed",
    "size_distribution",
    "summarize_sizes",
]
