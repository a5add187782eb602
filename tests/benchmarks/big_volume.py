"""A volume larger than memory through the whole path: generate, normalise, predict, label, measure; killed and resumed.

    python tests/benchmarks/big_volume.py --out DIR                              # 1024 x 2048 x 2048 uint16, 8.6 GB
    python tests/benchmarks/big_volume.py --out DIR --shape 256x512x512 --check  # and the same in memory, compared

Every stage is a process of its own, so that its peak memory is its own. Stages named by `--kill` get SIGKILL when half
of their blocks are done, and are started again; the second process must go on where the first ended. The network is
tiny (two convolutions with set weights: smoothing and a threshold), the phantom's spheres keep apart, so that the right
count is known. `--check` also labels and measures in memory: labels must be equal, tables too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from keras_microseg import io  # noqa: E402
from keras_microseg.image import PixelSize  # noqa: E402
from keras_microseg.intensity import Normalizer, volume_statistics  # noqa: E402

STAGES = ("generate", "normalise", "predict", "label", "measure")
SIZE = PixelSize((0.65, 0.65, 0.65), "um")
COLUMNS = ("volume", "equivalent_diameter", "centroid_z", "centroid_y", "centroid_x", "bbox_z0", "touches_border")


def plan(shape: tuple[int, ...], diameter: float):
    """Spheres that keep 4 voxels apart, 15 % of the volume, in noise."""
    from keras_microseg.simulation import PhantomSettings, plan_phantom

    return plan_phantom(
        PhantomSettings(shape=shape, diameter=diameter, fraction=0.15, gap=4, contrast=0.2, fringe=0.02, noise=0.05,
                        poisson=0.0, rings=0.0)
    )  # fmt: skip


def generate(folder: Path, args: argparse.Namespace) -> dict:
    from keras_microseg.workflows.tomography_prepare import write_phantom

    drawn = plan(args.shape, args.diameter)
    with io.create_volume(folder / "volume.zarr", args.shape, np.uint16, voxel_size=SIZE, key=1, resume=True) as out:
        before = count_done(out.list_path)
        write_phantom(drawn, out, max_ram=args.max_ram)
    table = drawn.table()
    return {"resumed": before, "spheres": len(table)}


def normalise(folder: Path, args: argparse.Namespace) -> dict:
    image = io.open_volume(folder / "volume.zarr")
    statistics = volume_statistics(image.data, max_ram=args.max_ram)
    normalizer = Normalizer.fit(statistics)
    (folder / "normalizer.json").write_text(json.dumps({**normalizer.to_dict(), "threshold": statistics.otsu()}))
    return {"low": normalizer.low, "high": normalizer.high, "otsu": statistics.otsu()}


def network(threshold: float):
    """Smoothing over 3^3 voxels, then 0.5 at `threshold` (0..1)."""
    import keras

    x = inputs = keras.Input((None, None, None, 1))
    x = keras.layers.Conv3D(1, 3, padding="same", name="smooth")(x)
    outputs = keras.layers.Conv3D(1, 1, activation="sigmoid", dtype="float32", name="foreground")(x)
    model = keras.Model(inputs, outputs)
    bell = np.array([0.25, 0.5, 0.25])
    model.get_layer("smooth").set_weights([np.einsum("i,j,k->ijk", bell, bell, bell)[..., None, None], np.zeros(1)])
    model.get_layer("foreground").set_weights([np.full((1, 1, 1, 1, 1), 30.0), np.full(1, -30.0 * threshold)])
    card = {"name": "tiny", "ndim": 3, "outputs": ["foreground"], "multiple_of": 1, "halo": 2}
    return model, card


def predict(folder: Path, args: argparse.Namespace) -> dict:
    from keras_microseg.inference.volumes import open_volume_predictor, predict_volume

    note = json.loads((folder / "normalizer.json").read_text())
    normalizer = Normalizer.from_dict(note)
    model, card = network(float(normalizer(np.array([note["threshold"]]))[0]))
    part = folder / "maps" / "foreground.zarr.blocks"
    before = count_done(part)
    predict_volume(
        open_volume_predictor(model, card=card), io.open_volume(folder / "volume.zarr"), folder / "maps",
        normalizer=normalizer, max_ram=args.max_ram, blend=None, resume=True,
    )  # fmt: skip
    return {"resumed": before}


def label(folder: Path, args: argparse.Namespace) -> dict:
    maps = io.open_volume(folder / "maps" / "foreground.zarr")
    out_path = folder / "labels.zarr"
    before = count_done(folder / "labels.zarr.blocks")
    count = label_volume(maps, out_path, args)
    return {"objects": count, "resumed": before}


def label_volume(maps, out_path: Path, args: argparse.Namespace) -> int:
    from keras_microseg.segmentation.separation import separate_blocks
    from keras_microseg.segmentation.stitching import label_blocks

    with io.create_volume(out_path, maps.shape, np.uint32, voxel_size=SIZE, key=1) as out:
        if args.method == "separate":
            return separate_blocks(Above(maps.data), out, block=(128, 128, 128), halo=int(args.diameter / 2) + 16)
        return label_blocks(Above(maps.data), out, (256, 256, 256))


class Above:
    """Voxels of a map above one half."""

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, data.shape, np.dtype(bool)

    def __getitem__(self, box):
        return np.asarray(self.data[box]) > 127


def measure(folder: Path, args: argparse.Namespace) -> dict:
    from keras_microseg.measurement import measure_particles

    labels = io.open_volume(folder / "labels.zarr")
    table = measure_particles(labels, quantities=COLUMNS)
    table.to_csv(folder / "particles.csv", index=False)
    inner = table[~table.touches_border]
    return {"particles": len(table), "median_diameter_um": float(inner.equivalent_diameter.median())}


def check(folder: Path, args: argparse.Namespace) -> dict:
    """The same in memory: one array after the other."""
    import pandas as pd

    from keras_microseg.inference.prediction import Predictor, predict_maps
    from keras_microseg.measurement import measure_particles
    from keras_microseg.segmentation.labeling import label_components
    from keras_microseg.segmentation.separation import separate

    grey, _ = plan(args.shape, args.diameter).read(tuple(slice(0, n) for n in args.shape))
    np.testing.assert_array_equal(grey, io.open_volume(folder / "volume.zarr").read())
    note = json.loads((folder / "normalizer.json").read_text())
    normalizer = Normalizer.fit(grey)
    assert normalizer == Normalizer.from_dict(note)
    model, card = network(float(normalizer(np.array([note["threshold"]]))[0]))
    maps = predict_maps(Predictor(model, card), normalizer(grey))[..., 0]
    stored = io.open_volume(folder / "maps" / "foreground.zarr").read()
    quantized = np.rint(maps * 255).astype(np.uint8)
    different = int(np.count_nonzero(quantized != stored))
    assert np.abs(quantized.astype(int) - stored).max() <= 1
    labels = separate(stored > 127) if args.method == "separate" else label_components(stored > 127, 4)
    found = io.open_volume(folder / "labels.zarr").read()
    pairs = np.unique(np.stack([labels.ravel(), found.ravel()]), axis=1)
    assert pairs.shape[1] == labels.max() + 1 == found.max() + 1, "labels differ"
    table = measure_particles(labels, pixel_size=SIZE, quantities=COLUMNS)
    other = pd.read_csv(folder / "particles.csv")
    keys = ["centroid_z", "centroid_y", "centroid_x"]
    table, other = (t.sort_values(keys).drop(columns="label").reset_index(drop=True) for t in (table, other))
    pd.testing.assert_frame_equal(table, other, check_dtype=False, rtol=1e-9)
    return {"map_voxels_that_round_differently": different, "labels": "equal", "tables": "equal"}


def count_done(path: Path) -> int:
    """Finished blocks in the list of an unfinished volume."""
    return max(0, len(path.read_text().split("\n")) - 2) if path.is_file() else 0


def run_stage(name: str, args: argparse.Namespace, *, kill: bool) -> list[dict]:
    """One or, when killed, two processes."""
    command = [sys.executable, __file__, "--out", str(args.out), "--stage", name, "--max-ram", args.max_ram,
               "--shape", "x".join(map(str, args.shape)), "--diameter", str(args.diameter),
               "--method", args.method]  # fmt: skip
    lists = {"generate": "volume.zarr.blocks", "predict": "maps/foreground.zarr.blocks", "label": "labels.zarr.blocks"}
    rows = []
    if kill:
        start = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        done = 0
        while process.poll() is None and done < args.kill_after:
            time.sleep(0.05)
            done = count_done(args.out / lists[name])
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows.append({"stage": f"{name} (killed)", "seconds": time.time() - start, "blocks": done})
    start = time.time()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    facts = json.loads(output.strip().splitlines()[-1])
    if kill and not facts["resumed"]:
        raise SystemExit(f"{name} began anew after the kill")
    return [*rows, {"stage": name, "seconds": time.time() - start, **facts}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="1024x2048x2048")
    parser.add_argument("--diameter", type=float, default=64.0)
    parser.add_argument("--max-ram", default="1500MB")
    parser.add_argument("--method", choices=("components", "separate"), default="components", help="of the labels")
    parser.add_argument("--kill", default="generate,predict")
    parser.add_argument("--kill-after", type=int, default=2, help="finished blocks before the kill")
    parser.add_argument("--check", action="store_true", help="compare with the result in memory")
    parser.add_argument("--stage", choices=(*STAGES, "check"))
    args = parser.parse_args()
    args.shape = tuple(int(n) for n in args.shape.split("x"))
    if args.stage:
        cpu = time.process_time()
        facts = globals()[args.stage](args.out, args)
        facts.update(cpu=time.process_time() - cpu, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        print(json.dumps(facts, default=float))
        return
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    voxels = np.prod(args.shape, dtype=float)
    print(f"{args.shape} uint16, {voxels * 2 / 1e9:.2f} GB, max_ram {args.max_ram}")
    killed = args.kill.split(",")
    for name in (*STAGES, *(["check"] if args.check else [])):
        for row in run_stage(name, args, kill=name in killed):
            text = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "stage"
            )
            print(f"{row['stage']:<18} {text}", flush=True)


if __name__ == "__main__":
    main()
