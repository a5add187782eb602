"""Figures on real tomography volumes with known answers, as a table.

    python tests/benchmarks/real_volumes.py [--only berea fiberform strut grains] [--data DIR]

berea: porosity from the labels; then a simulated scan (grey, blur, noise) segmented half way between the peaks of its
histogram, by Otsu and by k-means.
grains: cuts of the reference filled (closing 3^3), then separated; its 26-connected components are the truth. The
defaults of `SeparationSettings` were chosen on this volume, so its scores are a little flattering.
fiberform: fraction at the threshold of the source, and by Otsu; fibre thickness. strut: equal-area diameter per slice.
Takes about four minutes and 3 GB, most of it for the grains.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from keras_microseg import io  # noqa: E402
from keras_microseg.image import PixelSize  # noqa: E402
from keras_microseg.intensity import volume_statistics  # noqa: E402
from keras_microseg.measurement import measure_particles  # noqa: E402
from keras_microseg.measurement.phases import (  # noqa: E402
    local_thickness,
    phase_connectivity,
    phase_fraction,
    specific_surface,
)
from keras_microseg.metrics import instance, pixel  # noqa: E402
from keras_microseg.segmentation.labeling import fill_holes, label_components, remove_small  # noqa: E402
from keras_microseg.segmentation.separation import SeparationSettings, separate  # noqa: E402
from keras_microseg.segmentation.voxel_classes import (  # noqa: E402
    classify_volume,
    fit_halfway,
    fit_kmeans,
    fit_multi_otsu,
)

Row = tuple[str, str, str]


def unzipped(path: Path, name: str, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        member = next(n for n in archive.namelist() if Path(n).name == name)
        (folder / name).write_bytes(archive.read(member))
    return folder / name


def berea(data: Path, scratch: Path) -> Iterator[Row]:
    solid = np.asarray(io.open_volume(unzipped(data / "berea/berea.zip", "berea.tif", scratch)).data) > 0
    size = PixelSize((5.345,), "um")
    share = phase_fraction(~solid)
    yield "porosity of the labels", f"{share.value:.5f} [{share.low:.3f}, {share.high:.3f}]", "0.19645"
    parts = phase_connectivity(~solid)
    yield "pore voxels in the largest part", f"{parts.largest_share:.4f}", "0.9937"
    yield "specific surface (Crofton), 1/um", f"{specific_surface(solid, pixel_size=size).per_volume:.5f}", "-"
    rng = np.random.default_rng(0)
    grey = ndimage.gaussian_filter(np.where(solid, np.float32(0.7), np.float32(0.3)), 1.0)
    grey += 0.08 * rng.standard_normal(grey.shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(grey, 0.7)
    out = np.zeros(grey.shape, np.uint8)
    for name, method, volume in (
        ("half way, Gauss 0.7", fit_halfway(smooth), smooth),
        ("Otsu, Gauss 0.7", fit_multi_otsu(smooth, 2), smooth),
        ("k-means", fit_kmeans(grey, 2), grey),
    ):
        classify_volume(volume, out, method)
        dice = pixel.dice(pixel.count(~solid, out == 0))
        yield f"grey scan, {name}: porosity", f"{1 - out.mean():.4f} (pore Dice {dice:.3f})", "0.1965 +- 0.01"


def grains(data: Path, scratch: Path) -> Iterator[Row]:
    solid = np.load(unzipped(data / "grains/grains.npy.zip", "grains.npy", scratch)) > 0
    truth = label_components(solid, 8)
    yield "grains in the reference", str(truth.max()), "1693"
    mask = ndimage.binary_closing(solid, np.ones((3, 3, 3))) | solid
    yield "solid fraction, cuts filled", f"{mask.mean():.4f}", "0.6437"
    begin = time.process_time()
    found = separate(mask, SeparationSettings())
    seconds = time.process_time() - begin
    table = instance.overlap_table(truth, found)
    match = instance.match(table)
    count, true = len(table.predicted_labels), len(table.true_labels)
    yield "grains found", f"{count} ({count / true - 1:+.1%})", "1693 +- 3 %"
    yield "precision at IoU 0.5", f"{match.precision:.3f}", ">= 0.90 (floor 0.660)"
    yield "recall at IoU 0.5", f"{match.recall:.3f}", ">= 0.90 (floor 0.898)"
    yield "mean IoU of the matches", f"{match.mean_iou:.3f}", "floor 0.852"
    large = remove_small(truth, 1000)
    recall = np.isin(np.unique(large)[1:], match.pairs[:, 0]).mean()
    yield "recall of grains >= 1000 voxels", f"{recall:.3f}", "floor 0.946"
    volumes = measure_particles(found, quantities=["volume"]).volume
    yield "median volume, voxels", f"{np.median(volumes):.0f}", "13971"
    yield "CPU time of the separation", f"{seconds:.0f} s", "-"


def fiberform(data: Path, scratch: Path) -> Iterator[Row]:
    grey = np.asarray(io.open_volume(data / "fiberform/100_fiberform.tif").data)
    yield "fraction at grey >= 90", f"{phase_fraction(grey >= 90).value:.5f}", "0.16714"
    level = volume_statistics(grey).otsu()
    yield "Otsu's threshold and its fraction", f"{level:.0f}, {(grey > level).mean():.3f}", "108, 0.154"
    thick = local_thickness(grey >= 90, pixel_size=PixelSize((1.3,), "um"))
    yield "mean local thickness, um", f"{thick[grey >= 90].mean():.1f}", "-"


def strut(data: Path, scratch: Path) -> Iterator[Row]:
    size = 7.0014
    volume = np.asarray(io.open_volume(str(data / "am_strut_90deg/*.bmp")).data)
    level = volume_statistics(volume).otsu()
    diameters = []
    for plane in volume:
        labels = label_components(fill_holes((plane > level).astype(np.int32)) > 0, 8)
        diameters.append(np.sqrt(4 / np.pi * np.bincount(labels.ravel())[1:].max()) * size)
    yield "Otsu's threshold", f"{level:.0f}", "78"
    yield "diameter over the slices, um", f"{np.mean(diameters):.1f} +- {np.std(diameters):.1f}", "616.8 +- 4.4"


PARTS = {"berea": berea, "fiberform": fiberform, "strut": strut, "grains": grains}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("MICROSEG_DATA", ROOT.parent / "shared/data")) / "xct_volumes"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"No data in {options.data}. Set MICROSEG_DATA or pass --data.")
    for name in options.only:
        print(name)
        with tempfile.TemporaryDirectory() as scratch:
            for what, value, reference in PARTS[name](options.data, Path(scratch)):
                print(f"  {what:40s}  {value:34s}  reference {reference}", flush=True)


if __name__ == "__main__":
    main()
