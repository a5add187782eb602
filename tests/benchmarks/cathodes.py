"""Cathodes of known truth: detachment and damage recovered, particles linked from slices, phases from grey values.

    python tests/benchmarks/cathodes.py                    # 2 cathodes of 96 x 176 x 176 voxels, minutes
    python tests/benchmarks/cathodes.py --network          # also phases by a small 3D U-Net trained on another cathode

Phases from grey values are measured with skip 1.5 and rim 1 (voxels), as the command does; those of the network, which
learns to look past the blurred edges, with rim 1 alone. `--set NAME=VALUE` changes its training (preset `fast`, weak
augmentation: phases differ in grey value alone; three CPU minutes). "Voxels": share in the right class, cracks as void.

Detachment is compared with the truth of the plan (points on the smooth surface, `CathodePlan.detachment`) at the same
distance, for particles that the border does not cut. Goals: every particle within 0.05, count within 3 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from cathode_scenes import large, renumber, spoil

from keras_microseg.measurement.cathode_table import CathodeMeasures, measure_cathode
from keras_microseg.metrics.instance import count_split_merge, match, overlap_table
from keras_microseg.segmentation.linking import LinkSettings, link_labels
from keras_microseg.segmentation.separation import SeparationSettings, separate
from keras_microseg.segmentation.view_fusion import fuse_views
from keras_microseg.segmentation.voxel_classes import classify_volume, fit_kmeans, fit_multi_otsu, fit_pixel_forest
from keras_microseg.simulation.cathodes import CRACK, PARTICLE, STATES, VOID, CathodeSettings, plan_cathode

DISTANCE = 3.0
HOW = CathodeMeasures(distances=(2.0, 3.0, 4.0), distance=DISTANCE)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 176, 176))
    parser.add_argument("--diameter", type=float, default=36.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--network", action="store_true", help="also train a 3D U-Net")
    parser.add_argument("--set", action="append", default=[], dest="changes", help="name=value of its training")
    options = parser.parse_args()
    network = None
    if options.network:
        lesson = CathodeSettings(shape=tuple(options.shape), diameter=options.diameter, seed=1000 + options.seeds[0])
        network = PhaseNetwork(lesson, options.changes)
    for seed in options.seeds:
        settings = CathodeSettings(shape=tuple(options.shape), diameter=options.diameter, seed=seed)
        plan = plan_cathode(settings)
        block = plan.read(tuple(slice(0, n) for n in settings.shape))
        ids = np.unique(block.labels)[1:]
        truth = dict(zip(ids, plan.detachment((DISTANCE,), labels=ids)[:, 0], strict=True))
        cracks = np.bincount(block.labels[block.phases == CRACK], minlength=int(ids[-1]) + 1)
        damage = cracks / np.maximum(np.bincount(block.labels.ravel()), 1)
        print(f"\ncathode {seed}: {settings.shape}, {len(ids)} particles")
        heads = f"{'voxels':>8}{'whole':>6}{'D mean':>9}{'D max':>8}{'> 0.05':>8}{'shell':>8}{'damage':>9}"
        print(f"  {'labels':34}{'phases':13}{heads}")
        recover("exact", block.labels, "exact", block.phases, block, truth, damage)
        linked = link(block.labels)
        recover("linked, 2 % of each fault", linked, "exact", block.phases, block, truth, damage)
        for name, phases in classical_phases(block).items():
            recover("exact", block.labels, name, phases, block, truth, damage)
        if network is not None:
            phases = network(block.grey)
            recover("exact", block.labels, "U-Net", phases, block, truth, damage)
            recover("linked, 2 % of each fault", linked, "U-Net", phases, block, truth, damage)
        baseline(block, plan.states)


def recover(name, labels, phase_name, phases, block, truth, damage) -> None:
    """One row: errors of detachment (surface, shell) and damage."""
    skip = 0.0 if phase_name in ("exact", "U-Net") else 1.5
    how = dataclasses.replace(HOW, skip=skip, rim=0.0 if phase_name == "exact" else 1.0)
    table = measure_cathode(labels, phases, None, how).particles
    table = table[~table["is_edge"] & (table["volume"] > 1000)]
    owner = np.array([np.bincount(block.labels[labels == label]).argmax() for label in table["label"]])
    known = np.array([truth.get(label, np.nan) for label in owner])
    error = table["detachment"].to_numpy() - known
    shell = np.abs(table["detachment_shell"].to_numpy() - known)
    broken = np.abs(table["damage"].to_numpy() - damage[owner])
    far = (np.abs(error) > 0.05).sum()
    right = (no_cracks(phases) == no_cracks(block.phases)).mean()
    mean, largest = np.nanmean(error), np.nanmax(np.abs(error))
    print(
        f"  {name:34}{phase_name:13}{right:8.3f}{len(table):6d}{mean:+9.3f}{largest:8.3f}{far:8d}"
        f"{np.nanmean(shell):8.3f}{np.nanmean(broken):9.3f}"
    )


def link(labels: np.ndarray) -> np.ndarray:
    """Print how slices are linked; returns the result for 2 % missing, 2 % split, 2 % merged."""
    planes, truth = renumber(labels), large(labels)
    result = None
    print(f"  linking: {len(np.unique(truth)) - 1} particles of 200 voxels or more")
    print(f"    {'faults of each kind':22}{'found':>6}{'count':>8}{'F1':>7}{'IoU':>8}{'split':>7}{'merged':>8}{'s':>7}")
    for share in (0.0, 0.02, 0.05):
        spoiled = faults(planes, share)
        start = time.perf_counter()
        linked = link_labels(spoiled, LinkSettings(min_slices=3))
        report(f"{share:.0%}", truth, linked, time.perf_counter() - start)
        result = linked.astype(np.int64) if share == 0.02 else result
    views = []
    for axis in range(3):
        moved = renumber(np.ascontiguousarray(np.moveaxis(labels, axis, 0)), axis)
        linked = link_labels(faults(moved, 0.05, axis), LinkSettings(min_slices=3))
        views.append(np.moveaxis(linked, 0, axis))
    start, fused = time.perf_counter(), np.zeros(labels.shape, np.uint32)
    fuse_views(views, fused)
    report("5%, three views", truth, fused, time.perf_counter() - start)
    return result


def faults(planes: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """All three kinds of faults."""
    for number, kind in enumerate(("missing", "split", "merged")):
        planes = spoil(planes, kind, share, 10 * seed + number) if share else planes
    return planes


def report(name: str, truth: np.ndarray, linked: np.ndarray, seconds: float) -> None:
    """One row of the table of linking."""
    found = large(linked)
    scores, parts = match(truth, found), count_split_merge(overlap_table(truth, found))
    count, true = len(np.unique(found)) - 1, len(np.unique(truth)) - 1
    print(
        f"    {name:22}{count:6d}{count / true - 1:+8.1%}{scores.f1:7.3f}{scores.mean_iou:8.3f}{parts.split:7d}"
        f"{parts.merged:8d}{seconds:7.1f}"
    )


def classical_phases(block) -> dict[str, np.ndarray]:
    """Void, CBD, particle from grey values: multi-Otsu, k-means, a forest trained on one slice."""
    grey, found = block.grey, {}
    exact = no_cracks(block.phases)
    strokes = np.full(grey.shape, 255, np.uint8)
    strokes[len(grey) // 2] = exact[len(grey) // 2]
    methods = {
        "multi-Otsu": lambda: fit_multi_otsu(grey, 3),
        "k-means": lambda: fit_kmeans(grey, 3),
        "forest": lambda: fit_pixel_forest(grey, strokes),
    }
    for name, fit in methods.items():
        out = np.zeros(grey.shape, np.uint8)
        classify_volume(grey, out, fit())
        found[name] = out
    return found


class PhaseNetwork:
    """A 3D U-Net trained (`volume train`) on the phases of one cathode, for others; prints its training time."""

    def __init__(self, lesson: CathodeSettings, changes: list[str]):
        from keras_microseg import backend
        from keras_microseg.cli.shared import parse_changes
        from keras_microseg.workflows import tomography_train

        backend.select()
        self.folder = tempfile.TemporaryDirectory()
        path, start = Path(self.folder.name), time.perf_counter()
        block = plan_cathode(lesson).read(tuple(slice(0, n) for n in lesson.shape))
        np.save(path / "grey.npy", block.grey)
        np.save(path / "classes.npy", no_cracks(block.phases))
        options = {"labels_are": "classes", "validation": 0.0, "augment": 0.05, "patch": 32, "batch_size": 4}
        options |= {"epochs": 25, **parse_changes(changes)}
        how = tomography_train.TrainVolumeSettings.from_preset(
            "fast", str(path / "grey.npy"), str(path / "classes.npy"), **options
        )
        trained = tomography_train.train_volume(how, path / "model")
        self.model = str(trained.model_path)
        print(f"U-Net trained on cathode {lesson.seed}: {time.perf_counter() - start:.0f} s, {trained.scores}")

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        from keras_microseg import io
        from keras_microseg.workflows import tomography_predict

        path = Path(self.folder.name)
        np.save(path / "seen.npy", grey)
        how = tomography_predict.PredictVolumeSettings(str(path / "seen.npy"), self.model, report=False)
        tomography_predict.predict(how, path / "maps", overwrite=True)
        return np.asarray(io.open_volume(path / "maps" / "classes.zarr").data[...]).astype(np.uint8)


def no_cracks(phases: np.ndarray) -> np.ndarray:
    """Cracks as void: what a network can tell from grey values alone."""
    return np.where(phases == CRACK, VOID, phases).astype(np.uint8)


def baseline(block, states: np.ndarray) -> None:
    """Threshold and distance watershed by state of the particle: what linking of detected instances competes with."""
    mask = fit_multi_otsu(block.grey, 3)(block.grey) == PARTICLE
    found = large(separate(mask, SeparationSettings(sigma=2.0, min_size=200)).astype(np.int64))
    truth = large(block.labels, 1000)
    edge = np.unique(np.concatenate([np.take(truth, i, a).ravel() for a in range(3) for i in (0, -1)]))
    hit = set(match(truth, found).pairs[:, 0].tolist())
    print("  Otsu + distance watershed, whole particles found at IoU 0.5:")
    for number, state in enumerate(STATES):
        own = [int(v) for v in np.unique(truth)[1:] if v not in edge and states[v - 1] == number]
        print(f"    {state:10}{sum(v in hit for v in own):4d} of {len(own)}")
    print(f"    all        {len(np.unique(found)) - 1} objects for {len(np.unique(truth)) - 1} particles")


if __name__ == "__main__":
    main()
