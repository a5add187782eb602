"""From an image to instance labels with a trained network: tiled prediction, working scale, images beyond memory.

`prediction` runs the network over tiles, `views` gives large images window by window at any scale, `scale` finds the
scale at which a model works, `segmenter` does the whole job in memory and `out_of_core` on disk. Only opening a model
loads keras.
"""

from keras_microseg.inference.out_of_core import segment_large
from keras_microseg.inference.prediction import Predictor, choose_tile, predict_maps
from keras_microseg.inference.scale import find_scale
from keras_microseg.inference.segmenter import SegmentationResult, Segmenter

__all__ = ["Predictor", "SegmentationResult", "Segmenter", "choose_tile", "find_scale", "predict_maps", "segment_large"]
