"""Do the networks of a label-free run predict the same on every backend?

    python tests/benchmarks/backend_agreement.py RESULT
    python tests/benchmarks/backend_agreement.py RESULT --backends torch,jax --tiles 8

RESULT is the folder of `keras-microseg sem run`. Every trained network found there predicts, in float32 and in a
process of its own per backend, what it predicts in the workflow: tiles of the micrographs and the simulated masks
that the run used, latent vectors. Printed are the largest differences between backends, and of each backend to the
same network in float64 (PyTorch), which tells rounding from a real disagreement. Exits with 1 where two backends
differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NETWORKS = {
    "outlines": "outlines/generator.keras",
    "micrograph to mask": "translation/generator_a.keras",
    "mask to micrograph": "translation/generator_b.keras",
    "micrograph judge": "translation/discriminator_a.keras",
    "mask judge": "translation/discriminator_b.keras",
    "segmentation": "model.keras",
}
LIMIT = 1e-4


def make_inputs(run: Path, tiles: int, size: int) -> dict[str, np.ndarray]:
    """(N, H, W, C) or (N, latent size) float32 inputs by network."""
    from keras_microseg import io
    from keras_microseg.data.unpaired import read_micrograph
    from keras_microseg.workflows.steps import read_json

    rng = np.random.default_rng(0)
    facts = read_json(run / "images.json")
    images = list(facts["images"].values())[:tiles]
    grey = []
    for entry in images:
        micrograph = read_micrograph(entry["path"], info_bar=entry["info_bar"], polarity=facts["polarity"])
        corner = [int(rng.integers(0, n - size + 1)) for n in micrograph.grey.shape]
        grey.append(micrograph.tile(tuple(slice(c, c + size) for c in corner)))
    a = np.stack(grey)[..., None].astype(np.float32)
    paths = io.find_images(run / "masks" / "masks")[:tiles]
    masks = np.stack([np.asarray(io.open_image(path).data)[:size, :size] > 0 for path in paths])
    b = np.where(masks, 1, -1).astype(np.float32)[..., None]
    return {
        "outlines": rng.standard_normal((tiles, 128), np.float32),
        "micrograph to mask": 2 * a - 1,
        "mask to micrograph": np.concatenate([b, rng.standard_normal(b.shape, np.float32)], axis=-1),
        "micrograph judge": 2 * a - 1,
        "mask judge": b,
        "segmentation": a,
    }


def predict(run: Path, inputs_path: Path, out: Path, double: bool) -> None:
    """Predictions of the active backend; with `double` of copies in float64."""
    from keras_microseg import backend

    backend.select()
    import keras

    from keras_microseg.models.saving import load_model

    backend.configure_device(device="cpu", deterministic=True)
    inputs, results = dict(np.load(inputs_path)), {}
    for name, file in NETWORKS.items():
        if not (run / file).is_file():
            continue
        model, _ = load_model(run / file)
        x = inputs[name][..., : model.input_shape[-1]]
        if double:
            keras.config.set_floatx("float64")
            model, x = in_float64(model), x.astype("float64")
        forward = backend.compile_predict(model)
        made = [forward(x[i : i + 1]) for i in range(len(x))]
        made = [np.concatenate([np.ravel(v) for v in keras.tree.flatten(m)]) for m in made]
        results[name] = np.stack(made)
        keras.config.set_floatx("float32")
    np.savez(out, **results)


def in_float64(model):
    """A copy with weights and computation in float64."""
    import keras

    def clone(layer):
        config = keras.saving.serialize_keras_object(layer)
        config["config"]["dtype"] = "float64"
        return keras.saving.deserialize_keras_object(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--backends", default="torch,jax,tensorflow")
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--predict", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict:
        source, out, kind = arguments.predict
        predict(arguments.run, Path(source), Path(out), kind == "double")
        return 0

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "inputs.npz"
        np.savez(source, **make_inputs(arguments.run, arguments.tiles, arguments.size))
        names = arguments.backends.split(",")
        for kind, backend in [("single", name) for name in names] + [("double", "torch")]:
            label, out = backend if kind == "single" else "float64", Path(folder) / f"{backend}_{kind}.npz"
            environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
            command = [sys.executable, __file__, str(arguments.run), "--predict", str(source), str(out), kind]
            subprocess.run(command, check=True, env=environment, cwd=ROOT)
            results[label] = dict(np.load(out))
    pairs = [*itertools.combinations(names, 2), *((name, "float64") for name in names)]
    print(f"{'largest difference':<22}" + "".join(f"{f'{a}-{b}':>20}" for a, b in pairs) + f"{'range of values':>22}")
    worst = 0.0
    for network in next(iter(results.values())):
        values = [float(np.abs(results[a][network] - results[b][network]).max()) for a, b in pairs]
        exact = results["float64"][network]
        print(
            f"{network:<22}"
            + "".join(f"{value:>20.1e}" for value in values)
            + f"{exact.min():>12.3g}..{exact.max():.3g}",
            flush=True,
        )
        worst = max(worst, *values[: len(pairs) - len(names)])
    print(f"Largest difference between two backends: {worst:.1e} (limit {LIMIT:g})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
