"""Sorting particles into the user's classes by measured features; needs no network.

`features` measures what tells classes apart, `logistic` learns from it, `instances` joins both into a model that is
saved as one JSON file. The classifier of pixels, a network, is in `inference.pixel_classes`.
"""

from keras_microseg.classification.features import FEATURES, instance_features
from keras_microseg.classification.instances import InstanceClassifier, classes_of_instances

__all__ = ["FEATURES", "InstanceClassifier", "classes_of_instances", "instance_features"]
