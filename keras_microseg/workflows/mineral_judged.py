"""What `mineral evaluate` judges: a network, class maps of single images, or the map of a whole micrograph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.data.map_pairs import (
    ClassTable,
    MapImage,
    MapPair,
    find_classes,
    find_map_pairs,
    read_map,
    read_pair,
    split_pairs,
)
from keras_microseg.intensity import Normalizer
from keras_microseg.io.pairing import match_names
from keras_microseg.io.palettes import read_groups
from keras_microseg.workflows.mineral_quantify import find_map, open_numbers
from keras_microseg.workflows.mineral_tiles import TILES
from keras_microseg.workflows.mineral_train import TASK, classify, normalize, read_pairs
from keras_microseg.workflows.mineral_train_settings import TrainSettings
from keras_microseg.workflows.steps import read_json

if TYPE_CHECKING:
    from keras_microseg.workflows.mineral_evaluate import EvaluateSettings

_MOST_TRAINING = 16_000_000  # px that baselines learn from


@dataclasses.dataclass(frozen=True)
class Case:
    """What is judged.

    Attributes:
        judged, training: micrographs with their truth, read when they are asked for.
        table: the classes.
        predict: of the number and the image of a judged item, its class map.
        scaling: of grey values, as the network of the case wants them.
        edge: shortest edge of the judged maps, px.
    """

    judged: Sequence[MapImage]
    training: Sequence[MapImage]
    table: ClassTable
    predict: Callable[[int, MapImage], np.ndarray]
    scaling: Callable[[MapImage], Normalizer]
    edge: int


def open_case(asked: EvaluateSettings) -> Case:
    """Find out what `asked` compares.

    Raises:
        UserError: nothing to judge, or classes that do not fit.
        FileError: a network of another kind; a map that does not belong to its truth.
    """
    if asked.predicted.endswith(".keras"):
        case = _of_network(asked)
    elif (path := _whole_map(asked)) is not None:
        case = _of_whole_map(asked, path)
    else:
        case = _of_maps(asked)
    if not case.judged:
        raise UserError(f"No pair with truth is left to judge (part {asked.part!r}). Choose --part all, or another.")
    return case


class _Reader(Sequence):
    """Images that are read each time they are asked for."""

    def __init__(self, pairs: Sequence[MapPair], read: Callable[[MapPair], MapImage]):
        self.pairs, self.read = list(pairs), read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> MapImage:
        return self.read(self.pairs[number])

    @property
    def edge(self) -> int:
        return min((n for pair in self.pairs for n in io.open_image(pair.mask).shape[:2]), default=0)

    def thinned(self) -> _Reader:
        """Evenly chosen ones, as many as baselines can use."""
        pixels = sum(math.prod(io.open_image(pair.mask).shape[:2]) for pair in self.pairs)
        return _Reader(self.pairs[:: max(1, math.ceil(pixels / _MOST_TRAINING))], self.read)


def _whole_map(asked: EvaluateSettings) -> Path | None:
    """The map of a micrograph, where the truth is the tiles of one and the map is not that of a single tile."""
    if not (Path(asked.truth) / TILES).is_file():
        return None
    path = find_map(asked.predicted)
    tiles = {tile["name"] for tile in read_json(Path(asked.truth) / TILES)["tiles"]}
    return None if path is None or path.stem in tiles else path


def _of_network(asked: EvaluateSettings) -> Case:
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.prediction import Predictor
    from keras_microseg.models.saving import load_model

    model, card = load_model(asked.predicted)
    if card.get("task") != TASK:
        raise FileError(asked.predicted, "is no network for class maps.", "Use one of `mineral train`.")
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    known = {name: value for name, value in card["training"].items() if name in fields}
    changes = {"data": asked.truth, "soft": False, "regime": "random", "encoder_weights": None}
    for name in ("palette", "groups"):
        if getattr(asked, name) is not None:
            changes[name] = getattr(asked, name)
    settings = TrainSettings(**{**known, **changes})
    images, table = read_pairs(settings)
    if table.names != list(card["outputs"]):
        raise UserError(
            f"The network knows the classes {', '.join(card['outputs'])}, the truth {', '.join(table.names)}. "
            "Merge them alike (--groups)."
        )
    predictor = Predictor(model, card)
    judged, training = ([i for i in images if _is_in(i.pair, part)] for part in (asked.part, "train"))
    scalings = {
        (item.pair.name, item.pair.part): scaling
        for items in (training, judged)
        if items
        for item, scaling in zip(items, normalize(settings, items, card["normalization"])[1], strict=True)
    }

    def scaling(item: MapImage) -> Normalizer:
        return scalings[item.pair.name, item.pair.part]

    edge = min((n for item in judged for n in item.classes.shape), default=0)
    return Case(judged, training, table, lambda _, item: classify(predictor, scaling(item)(item.image)), scaling, edge)


def _of_maps(asked: EvaluateSettings) -> Case:
    """Class maps that exist already, one for each image."""
    truth = Path(asked.truth)
    try:
        pairs = split_pairs(find_map_pairs(truth), "given", validation=0)
        has_images = True
    except UserError:
        pairs = [MapPair(path.stem, path, path, path.stem, "validation") for path in io.find_images(truth)]
        has_images = False
    table = _classes(asked, truth if truth.is_dir() else truth.parent, pairs)
    files = io.find_images(asked.predicted)
    if len(files) == 1 and len(pairs) == 1:
        partners = {pairs[0].image: files[0]}
    else:
        partners = match_names([pair.image for pair in pairs], files)
    if not any(partners.values()):
        raise UserError(f"No class map in {asked.predicted} has the name of an image in {asked.truth}.")
    given = any(pair.part != "train" for pair in pairs)
    chosen = [p for p in pairs if _is_in(p, asked.part if given else "all") and partners.get(p.image) is not None]

    def predict(number: int, item: MapImage) -> np.ndarray:
        path = partners[item.pair.image]
        return _checked(read_map(path, table, tolerance=asked.tolerance), item.classes.shape, len(table.names), path)

    training = [pair for pair in pairs if _is_in(pair, "train")] if has_images and given else []
    return _read_lazily(asked, chosen, training, table, predict, has_images)


def _of_whole_map(asked: EvaluateSettings, path: Path) -> Case:
    """The map of the micrograph that the tiles of a folder were cut from."""
    pairs = find_map_pairs(asked.truth)
    facts = read_json(Path(asked.truth) / TILES)
    samples = list(dict.fromkeys(pair.sample for pair in pairs))
    if len(samples) > 1:
        raise UserError(
            f"The tiles come from the samples {', '.join(samples)}, the map shows one. Cut tiles of that sample."
        )
    table = _classes(asked, Path(asked.truth), pairs)
    image = open_numbers(path)
    edge, origins = facts["tile"], {tile["name"]: tile["origin"] for tile in facts["tiles"]}
    reach = tuple(max(origin[axis] for origin in origins.values()) + edge for axis in (0, 1))
    if image.axes != "YX" or any(n < r for n, r in zip(image.shape, reach, strict=True)):
        raise FileError(
            path, f"has shape {tuple(image.shape)}, but the tiles reach to {reach[0]} x {reach[1]} pixels.",
            "Name the map of the micrograph that they were cut from.",
        )  # fmt: skip
    cut = facts.get("pixel_size")
    if cut is not None and image.pixel_size is not None and image.pixel_size.unit == cut["unit"]:
        ratio = image.pixel_size.size[0] / np.ravel(cut["size"])[0]
        if not 0.98 < ratio < 1.02:
            raise FileError(
                path, f"has pixels {ratio:.3g} times as large as those of the tiles.",
                "Predict at the pixels of the tiles (--working-pixel-size), or cut tiles from this map's micrograph.",
            )  # fmt: skip

    def predict(number: int, item: MapImage) -> np.ndarray:
        window = tuple(slice(o, o + edge) for o in origins[item.pair.name])
        found = table.table[np.asarray(image.data[window])]
        return _checked(found, item.classes.shape, len(table.names), path)

    chosen = [pair for pair in pairs if _is_in(pair, asked.part)]
    return _read_lazily(asked, chosen, [pair for pair in pairs if _is_in(pair, "train")], table, predict, True)


def _read_lazily(
    asked: EvaluateSettings,
    judged: Sequence[MapPair],
    training: Sequence[MapPair],
    table: ClassTable,
    predict: Callable[[int, MapImage], np.ndarray],
    has_images: bool,
) -> Case:
    settings = TrainSettings(asked.truth)

    def read(pair: MapPair) -> MapImage:
        return read_pair(dataclasses.replace(pair, soft=None), table, tolerance=asked.tolerance, with_image=has_images)

    chosen = _Reader(judged, read)
    return Case(
        chosen, _Reader(training, read).thinned(), table, predict,
        lambda item: normalize(settings, [item])[1][0], chosen.edge,
    )  # fmt: skip


def _classes(asked: EvaluateSettings, folder: Path, pairs: Sequence[MapPair]) -> ClassTable:
    groups = None if asked.groups is None else read_groups(asked.groups)
    return find_classes(folder, pairs, palette=asked.palette, groups=groups, names=asked.classes)


def _checked(found: np.ndarray, shape: tuple[int, ...], num_classes: int, path: Path) -> np.ndarray:
    if found.shape != shape:
        raise FileError(
            path, f"has {found.shape[0]} x {found.shape[1]} pixels, its truth {shape}.",
            "Predict at the size of the truth.",
        )  # fmt: skip
    if (found >= num_classes).any():
        raise FileError(path, "holds numbers that are no class.", f"Classes are 0 to {num_classes - 1}.")
    return found


def _is_in(pair: Any, part: str) -> bool:
    return part == "all" or (pair.part != "train" if part == "held-out" else pair.part == part)
