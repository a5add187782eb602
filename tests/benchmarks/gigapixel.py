"""Class maps of gigapixel images: peak memory, overhead of the engine, workers, and what a whole sample would take.

    python tests/benchmarks/gigapixel.py --out DIR                          # CPU: 4k, 16k, 50k px, seconds each
    python tests/benchmarks/gigapixel.py --out DIR --workers 2              # and two workers against one
    python tests/benchmarks/gigapixel.py --out DIR --sizes 40000 --seconds 150 --filters 16 32 64 128 --batch 32

The image is a raw file: a 2048 x 2048 synthetic rock repeated by `seek`, so that a 50,000 x 50,000 file is written in
seconds (`--sizes`; edge in px). Every run is a process of its own, so that its peak memory is its own. A run computes
as many blocks as fit into `--seconds` (all of them where they do) from the whole width of the image; the rest is
extrapolated and the fraction printed. Overhead is (total - network) / network without the first, compiling call.
Workers have one thread each; on a machine that does other things too, compare their CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np  # noqa: E402

REFERENCE = 88_000 * 87_000


def write_image(path: Path, edge: int) -> None:
    """A raw micrograph of `edge` x `edge` px with its sidecar."""
    from keras_microseg.simulation import Rock, RockSettings

    if path.exists() and path.stat().st_size == edge * edge:
        return
    piece = Rock(RockSettings(shape=(2048, 2048), disc=0, grain_size=80)).sem[...]
    wide = np.tile(piece, (1, -(-edge // 2048)))[:, :edge]
    with open(path, "wb") as file:
        for top in range(0, edge, 2048):
            file.write(np.ascontiguousarray(wide[: min(2048, edge - top)]).tobytes())
    header = {"shape": [1, edge, edge], "dtype": "uint8", "voxel_size": 0.3, "unit": "um"}
    Path(f"{path}.json").write_text(json.dumps(header))


def write_model(path: Path, filters: list[int], classes: int = 5) -> None:
    """A U-Net of random weights; its speed is that of a trained one."""
    import keras

    from keras_microseg.models import saving

    layers = keras.layers

    def block(x, width):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    x = grey = keras.Input((None, None, 1))
    skips = []
    for width in filters[:-1]:
        x = block(x, width)
        skips.append(x)
        x = layers.MaxPooling2D(2)(x)
    x = block(x, filters[-1])
    for width, skip in zip(filters[-2::-1], skips[::-1], strict=True):
        x = block(layers.Concatenate()([layers.UpSampling2D(2)(x), skip]), width)
    model = keras.Model(grey, layers.Conv2D(classes, 1, activation="softmax")(x))
    card = {
        "name": "benchmark", "outputs": [f"class {k}" for k in range(classes)], "multiple_of": 2 ** (len(filters) - 1),
        "halo": 64, "normalization": {"mode": "fixed", "low": 0.0, "high": 255.0},
    }  # fmt: skip
    saving.save_model(model, path, card)


def measure(args: argparse.Namespace) -> dict:
    """In a process of its own: map a part of one image."""
    from keras_microseg.inference.map_engine import MapEngine, Timings
    from keras_microseg.inference.map_workers import connect, run_on_workers
    from keras_microseg.io.map_store import MapStore
    from keras_microseg.workflows.mineral_predict import MapSettings, _Job

    settings = MapSettings(
        (args.image,), args.model, args.working, tile=args.tile, batch_size=args.batch, max_ram=args.max_ram,
        threads=args.threads,
    )  # fmt: skip
    folder = Path(args.result)
    shutil.rmtree(folder, ignore_errors=True)
    job = _Job(settings, Path(args.image), folder, None, None)
    plan, _, _ = job._plan()
    folder.mkdir(parents=True)
    edges = [min(plan.block * s, n) for s, n in zip(plan.grid.stride, plan.shape, strict=True)]
    MapStore.create(plan.store, plan.shape, edges)
    blocks = plan.blocks()
    if args.spread:  # blocks from all over the image
        rng = np.random.default_rng(0)
        blocks = [blocks[i] for i in np.sort(rng.permutation(len(blocks))[: args.spread])]
    times, found = Timings(), {}
    if args.workers:
        with connect(args.workers) as client:
            run_on_workers(plan, blocks[: 2 * args.workers], client)  # load and compile
            blocks = blocks[2 * args.workers :]
            start, spent = time.perf_counter(), cpu_seconds(client)
            for part in run_on_workers(plan, blocks, client):
                times.add(part)
            wall = time.perf_counter() - start
            found["cpu_s"] = round(cpu_seconds(client) - spent, 2)
            found["peak_worker_gb"] = round(max(client.run(peak).values()) / 1e9, 3)
    else:
        engine = MapEngine(plan)
        found["device"] = engine.network.device
        engine.run(blocks[:1])
        start, at, step = time.perf_counter(), 1, args.step
        while at < len(blocks) and time.perf_counter() - start < args.seconds:
            times.add(engine.run(blocks[at : at + step]))
            at += step
        wall = time.perf_counter() - start
        blocks = blocks[1:at]
    total = int(np.prod(plan.shape))
    return {
        **found, "image": [int(n) for n in plan.view.shape], "source_pixels": int(np.prod(plan.image.shape)),
        "blocks": len(blocks), "pixels": times.pixels, "fraction": times.pixels / total, "seconds": round(wall, 2),
        "mpx_per_s": round(times.pixels / wall / 1e6, 3), "network_s": round(times.network, 2),
        "waiting_s": round(times.waiting, 2), "reading_s": round(times.reading, 2),
        "writing_s": round(times.writing, 2),
        "overhead": round(wall / times.network - 1, 4) if not args.workers else None,
        "batch": plan.batch_size, "tile": plan.tile, "block": plan.block,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "workers": args.workers,
    }  # fmt: skip


def cpu_seconds(client) -> float:
    """Of all workers and of this process, which schedules."""
    return sum(client.run(time.process_time).values()) + time.process_time()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4000, 16000, 50000])
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--spread", type=int, default=0, help="this many blocks from all over the image; 0 = in order")
    parser.add_argument("--step", type=int, default=8)
    parser.add_argument("--filters", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--working", default="native")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-ram", default="2GB")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, default=0, help="also run this many workers on the smallest image")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    for name in ("--image", "--model", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print("RESULT " + json.dumps(measure(args)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.out / "model.keras"
    write_model(model, args.filters)
    rows = []

    def run(edge: int, **changes: object) -> dict:
        image = args.out / f"sem{edge}.raw"
        write_image(image, edge)
        options = {"image": image, "model": model, "result": args.out / "result", "seconds": args.seconds,
                   "spread": args.spread, "step": args.step, "working": args.working, "tile": args.tile,
                   "batch": args.batch, "max-ram": args.max_ram, "threads": args.threads, **changes}  # fmt: skip
        words = [w for name, value in options.items() if value is not None for w in (f"--{name}", str(value))]
        ended = subprocess.run(
            [sys.executable, __file__, "--measure", "--out", str(args.out), *words], capture_output=True, text=True
        )
        lines = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(ended.stderr[-3000:])
        row = json.loads(lines[-1][7:])
        print(json.dumps(row), flush=True)
        rows.append(row)
        return row

    for edge in args.sizes:
        row = run(edge)
        factor = row["source_pixels"] / np.prod(row["image"][:2])
        hours = REFERENCE / factor / (row["mpx_per_s"] * 1e6) / 3600
        print(
            f"{edge} x {edge} px: {100 * row['fraction']:.1f} % computed, {row['mpx_per_s']:.2f} Mpx/s, "
            f"overhead {100 * row['overhead']:.1f} %, peak {row['peak_gb']:.2f} GB; 88,000 x 87,000 px: {hours:.2f} h",
            flush=True,
        )
    if args.workers:
        for workers in sorted({1, args.workers}):
            run(args.sizes[-1], workers=workers, spread=args.spread or 24 * args.workers, threads=1)
        one, many = rows[-2:]
        cost = [row["cpu_s"] / row["pixels"] for row in (one, many)]
        print(
            f"{args.workers} workers against one: {many['mpx_per_s'] / one['mpx_per_s']:.2f} times as fast; one had "
            f"{one['cpu_s'] / one['seconds']:.2f} processors, they {many['cpu_s'] / many['seconds']:.2f}. CPU time per "
            f"pixel {cost[1] / cost[0]:.3f} times that of one, so {args.workers * cost[0] / cost[1]:.2f} times as fast "
            "where each has a processor of its own"
        )
    (args.out / "gigapixel.json").write_text(json.dumps(rows, indent=1))
    if not args.keep:
        shutil.rmtree(args.out / "result", ignore_errors=True)
        for image in args.out.glob("sem*.raw*"):
            image.unlink()


if __name__ == "__main__":
    main()
