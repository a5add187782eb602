"""Two images of one sample brought onto each other; the sample's disc and the fields that instruments stitch."""

from keras_microseg.registration.alignment import AlignmentSettings, Registration, align
from keras_microseg.registration.micrograph import CorrectedMicrograph, Correction, estimate_correction, find_fields
from keras_microseg.registration.mosaic import FieldGains, Mosaic, find_mosaic, match_fields, repair_mosaic
from keras_microseg.registration.pictures import checkerboard, edge_overlay, residual_chart
from keras_microseg.registration.sample import Disc, find_disc, reduce_image
from keras_microseg.registration.transform import ResampledLabels, Transform

__all__ = [
    "AlignmentSettings",
    "CorrectedMicrograph",
    "Correction",
    "Disc",
    "FieldGains",
    "Mosaic",
    "Registration",
    "ResampledLabels",
    "Transform",
    "align",
    "checkerboard",
    "edge_overlay",
    "estimate_correction",
    "find_disc",
    "find_fields",
    "find_mosaic",
    "match_fields",
    "reduce_image",
    "repair_mosaic",
    "residual_chart",
]
