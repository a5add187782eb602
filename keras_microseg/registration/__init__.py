"""Two images of one sample brought onto each other; the sample's disc and the fields that instruments stitch."""

from keras_microseg.registration.alignment import AlignmentSettings, Registration, align
from keras_microseg.registration.mosaic import FieldGains, Mosaic, find_mosaic, match_fields, repair_mosaic
from keras_microseg.registration.pictures import checkerboard, edge_overlay, residual_chart
from keras_microseg.registration.sample import Disc, find_disc, reduce_image
from keras_microseg.registration.transform import Transform

__all__ = [
    "AlignmentSettings",
    "Disc",
    "FieldGains",
    "Mosaic",
    "Registration",
    "Transform",
    "align",
    "checkerboard",
    "edge_overlay",
    "find_disc",
    "find_mosaic",
    "match_fields",
    "reduce_image",
    "repair_mosaic",
    "residual_chart",
]
