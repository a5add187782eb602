"""Particles by several methods on the same images, one table: accuracy, splits, sizes, time.

python tests/benchmarks/particle_methods.py --data ampis_powder --fold 0 --minutes 30      # leave one image out
python tests/benchmarks/particle_methods.py --data nasa_meltpool --minutes 30
python tests/benchmarks/particle_methods.py --data cathodes --minutes 30
python tests/benchmarks/particle_methods.py --data ampis_powder --model MODEL/model.keras  # no training

Methods: Otsu + distance watershed, the U-Net with instance outputs that ships with the package, Mask R-CNN trained here
from random weights for `--minutes` with `--preset`. Real images come from MICROSEG_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("MICROSEG_DATA", ROOT.parent / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("ampis_powder", "nasa_meltpool", "cathodes"), default="ampis_powder")
    parser.add_argument("--fold", type=int, default=0, help="which image or fifth is left out")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--preset", default="light")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="name=value of the training")
    parser.add_argument("--model", type=Path, help="a trained detector, instead of training")
    parser.add_argument("--min-score", type=float, help="score from which the detector reports; default: the model's")
    parser.add_argument("--out", type=Path, default=Path("particle_methods"))
    parser.add_argument("--methods", default="watershed,unet,mask_rcnn")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("KERAS_BACKEND", "jax")
    out = arguments.out / f"{arguments.data}_{arguments.fold}"
    settings, held, strata = make_settings(arguments, out)
    model, seconds = arguments.model, 0.0
    if "mask_rcnn" in arguments.methods and model is None:
        from keras_microseg.workflows.particle_train import train_particles

        start = time.perf_counter()
        try:
            model = train_particles(settings, out / "training", overwrite=True).model_path
        except KeyboardInterrupt:
            model = next(iter((out / "training").rglob("best.keras")), None)
        seconds = time.perf_counter() - start
    rows = []
    for method in arguments.methods.split(","):
        row = score(method, held, model, strata, arguments.min_score)
        if row is not None:
            rows.append(row)
            print(json.dumps(row), flush=True)
    table = pd.DataFrame(rows).set_index("method")
    print(f"\n{arguments.data}, fold {arguments.fold}: {len(held)} images held back, "
          f"{sum(len(one.classes) for one in held)} objects; training {seconds:.0f} s, preset {arguments.preset}, "
          f"seed {arguments.seed}, backend {os.environ['KERAS_BACKEND']}")  # fmt: skip
    print(table.round(3).to_string())
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "table.csv")


def make_settings(arguments: argparse.Namespace, out: Path):
    """Settings of the training, images held back for the scores, and strata of their objects."""
    import ast

    from keras_microseg.workflows.particle_data import load_data, split_objects
    from keras_microseg.workflows.particle_train import ParticleTrainSettings

    changes = {}
    for text in arguments.changes:
        name, _, value = text.partition("=")
        try:
            changes[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[name] = value
    strata: dict[str, dict[int, str]] = {}
    options = {"minutes": arguments.minutes, "seed": arguments.seed, **changes}
    if arguments.data == "ampis_powder":
        folder = DATA / "ampis_powder"
        options["annotations"] = str(folder / "annotations" / "via_powder_particle_masks_training.json")
        settings = ParticleTrainSettings.of_preset(str(folder / "images"), arguments.preset, **options)
        names = sorted(one.name for one in load_data(settings)[0])
        held_names = (names[arguments.fold % len(names)],)
    elif arguments.data == "nasa_meltpool":
        folder = DATA / "nasa_meltpool"
        options["annotations"] = str(next((folder / "annotations").glob("*.json")))
        images = folder / "images" if (folder / "images").is_dir() else folder / "train"
        settings = ParticleTrainSettings.of_preset(str(images), arguments.preset, **options)
        names = sorted(one.name for one in load_data(settings)[0])
        held_names = tuple(names[arguments.fold % 5 :: 5])
    else:
        from keras_microseg.simulation.cathodes import CathodeSettings
        from keras_microseg.workflows.simulate_cathodes import CathodeRun, simulate_cathodes

        data = out / "data"
        if not (data / "objects.csv").exists():  # the last file written
            run = CathodeRun(40, CathodeSettings(shape=(1, 384, 384), seed=arguments.seed), "70nm", "zarr")
            simulate_cathodes(run, data)
        settings = ParticleTrainSettings.of_preset(str(data), arguments.preset, **options)
        names = sorted(one.name for one in load_data(settings)[0])
        held_names = tuple(names[:10])
        table = pd.read_csv(data / "objects.csv", comment="#")
        for image, rows in table.groupby("image"):  # objects are numbered in the order of their labels
            states = rows.sort_values("label")["state"]
            strata[str(image)] = {k: str(state) for k, state in enumerate(states, 1)}
    images, _, _ = load_data(settings)
    training, held = split_objects(images, held_names, 0)
    settings = ParticleTrainSettings.of_preset(settings.data, arguments.preset, **options, validation=held_names)
    return settings, held, strata


def score(method: str, held: list, model: Path | None, strata: dict, min_score: float | None = None) -> dict | None:
    from keras_microseg.workflows.particle_evaluate import compare_labels, score_compared, score_strata

    run = {
        "watershed": watershed,
        "unet": shipped_unet,
        "mask_rcnn": functools.partial(mask_rcnn, min_score=min_score),
    }[method](model)
    if run is None:
        return None
    run(held[0].image)  # compile
    compared, seconds, pixels, post = [], 0.0, 0, 0.0
    for one in held:
        start = time.perf_counter()
        labels, scores, extra = run(one.image)
        seconds += time.perf_counter() - start
        post += extra
        pixels += labels.size
        stem = Path(one.name).stem
        compared.append(compare_labels(stem, one.label_image(), labels, scores, ignore=one.ignored()))
    scores = {name: value[0] for name, value in score_compared(compared, resamples=0).items()}
    if method == "mask_rcnn":  # average precision needs the doubtful ones too, and masks that may overlap
        scores |= ranked(model, held)
    row = {"method": method, **scores, "s_per_megapixel": seconds / (pixels / 1e6), "post_share": post / seconds}
    if strata:
        for stratum in score_strata(compared, strata).itertuples():
            row[f"recall_{stratum.stratum}"] = float(stratum.recall)
    return row


def watershed(model: Path | None):
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.segmentation import watershed as flood

    def run(image):
        grey = gaussian(image, 1)
        mask = grey > threshold_otsu(grey)
        distance = gaussian(ndimage.distance_transform_edt(mask), 1)
        seeds = np.zeros(mask.shape, int)
        places = peak_local_max(distance, min_distance=5, labels=mask.astype(int))
        seeds[tuple(places.T)] = np.arange(1, len(places) + 1)
        labels = flood(-distance, seeds, mask=mask)
        return clean(labels), None, 0.0

    return run


def shipped_unet(model: Path | None):
    from keras_microseg import inference

    segmenter = inference.Segmenter("default")

    def run(image):
        found = segmenter.segment((image * 255).astype(np.uint8))
        return clean(np.asarray(found.labels)), None, 0.0

    return run


def mask_rcnn(model: Path | None, min_score: float | None = None):
    if model is None:
        return None
    from keras_microseg.inference.instances import InstancePredictor

    predictor = InstancePredictor(model)
    scale, least = float(predictor.card.get("scale", 1.0)), min_score or float(predictor.card.get("min_score", 0.5))

    def run(image):
        found = predictor(image, min_score=least, scale=scale, stretched=True)
        return found.labels, found.table["score"].to_numpy(), found.seconds["post"]

    return run


def ranked(model: Path, held: list) -> dict:
    """COCO's average precision of all detections with a score of 0.05 or more."""
    from keras_microseg.inference.detector_scores import DetectorScores
    from keras_microseg.inference.instances import InstancePredictor
    from keras_microseg.metrics.detection import average_precision

    predictor = InstancePredictor(model)
    found = average_precision(DetectorScores(held, predictor.card).compare(predictor))
    return {"ap": found.ap, "ap50": found.ap50, "ap75": found.ap75}


def clean(labels: np.ndarray, least: int = 10) -> np.ndarray:
    """Numbered 1..n; objects of fewer than `least` pixels are left out."""
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    numbers = np.zeros(len(counts), np.int64)
    numbers[counts >= least] = np.arange(1, int((counts >= least).sum()) + 1)
    return numbers[labels]


if __name__ == "__main__":
    main()
