"""Annotations drawn by hand: outlines of VIA, COCO, labelme and ImageJ, label images, class images and class lists.

All formats are read to one record (`Annotations` of `AnnotatedImage` of `Region`) and written from it; what is wrong
with a file is listed (`Problem`), object by object, and the rest is used. Regions may overlap; a label image keeps one
label per pixel, so a later region lies on top of an earlier one (or, with `order="small_on_top"`, a smaller one on top
of a larger one).
"""

from keras_microseg.io.annotations.classes import (
    ClassList,
    Colour,
    colour_text,
    find_class_list,
    parse_colour,
    read_class_image,
    read_class_list,
)
from keras_microseg.io.annotations.drawing import draw_regions, fill_rings, region_mask, trace_labels
from keras_microseg.io.annotations.files import (
    FOLDER_TARGETS,
    FORMATS,
    TARGETS,
    guess_format,
    match_images,
    read_annotations,
    write_annotations,
)
from keras_microseg.io.annotations.records import AnnotatedImage, Annotations, Problem, Region, Rle, polygon_area
from keras_microseg.io.annotations.splits import (
    Leak,
    Place,
    cut_blocks,
    find_leaks,
    place_of,
    split_blocks,
    split_images,
)
from keras_microseg.io.annotations.validation import check_annotations, drop_unusable
from keras_microseg.io.annotations.via import read_via

__all__ = [
    "FOLDER_TARGETS",
    "FORMATS",
    "TARGETS",
    "AnnotatedImage",
    "Annotations",
    "ClassList",
    "Colour",
    "Leak",
    "Place",
    "Problem",
    "Region",
    "Rle",
    "check_annotations",
    "colour_text",
    "cut_blocks",
    "draw_regions",
    "drop_unusable",
    "fill_rings",
    "find_class_list",
    "find_leaks",
    "guess_format",
    "match_images",
    "parse_colour",
    "place_of",
    "polygon_area",
    "read_annotations",
    "read_class_image",
    "read_class_list",
    "read_via",
    "region_mask",
    "split_blocks",
    "split_images",
    "trace_labels",
    "write_annotations",
]
