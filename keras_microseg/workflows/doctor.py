"""Workflow `doctor`: is everything there, which backend and device would be used, and how to get what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from keras_microseg import __version__, backend

ARRAY_PACKAGES = {
    "numpy": "numpy", "scipy": "scipy", "scikit-image": "skimage", "tifffile": "tifffile",
    "imagecodecs": "imagecodecs", "pillow": "PIL", "h5py": "h5py", "zarr": "zarr", "pandas": "pandas",
    "openpyxl": "openpyxl", "matplotlib": "matplotlib", "jinja2": "jinja2", "typer": "typer", "rich": "rich",
}  # fmt: skip
_NEEDED_MEGABYTES = 500
# Runs in a process of its own: a backend that crashes must not take the doctor with it.
_TRIAL = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from keras_microseg import backend
backend.select()
import keras, numpy
device = backend.configure_device()
layer = keras.layers.Conv2D(2, 3)
result = keras.ops.convert_to_numpy(layer(numpy.ones((1, 8, 8, 1), "float32")))
assert result.shape == (1, 6, 6, 2) and numpy.isfinite(result).all()
print("RESULT" + json.dumps({"keras": keras.__version__, "device": str(device)}))
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        title: what was looked at.
        status: `"ok"`, `"note"` (works, but worth knowing) or `"missing"`.
        text: what was found.
        remedy: what to do, or empty.
    """

    title: str
    status: str
    text: str
    remedy: str = ""


def examine(*, timeout: float = 180.0) -> list[Check]:
    """Look at Python, the packages, every backend (with a trial computation), the default model and the disk.

    Args:
        timeout: seconds that one backend may take for its trial.
    """
    checks = [_python(), *_packages()]
    trials = {name: _backend(name, timeout) for name in backend.PREFERENCE}
    checks += trials.values()
    checks += [_choice([name for name, check in trials.items() if check.status == "ok"]), _model(), _disk()]
    return checks


def is_usable(checks: list[Check]) -> bool:
    """True when the array half and at least one backend work."""
    return all(check.status != "missing" for check in checks)


def _python() -> Check:
    text = f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores; keras_microseg {__version__}"
    return Check("Python", "ok", text)


def _packages() -> list[Check]:
    missing = [name for name, module in ARRAY_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return [Check("Packages", "missing", f"not installed: {', '.join(missing)}", remedy)]
    found = [f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "pandas", "tifffile", "scikit-image")]
    return [Check("Packages", "ok", ", ".join(found) + " (reading, measuring and reporting work)")]


def _backend(name: str, timeout: float) -> Check:
    install = f'pip install "keras_microseg[{name}]"'
    if importlib.util.find_spec(name) is None:
        return Check(f"Backend {name}", "note", "not installed", install)
    if importlib.util.find_spec("keras") is None:
        return Check(f"Backend {name}", "note", "keras is not installed", install)
    package = next((package for package in (name, f"{name}-cpu", f"{name}_cpu") if _version(package)), name)
    repair = f"pip install --force-reinstall keras {package}"
    environment = {**os.environ, "KERAS_BACKEND": name, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Check(f"Backend {name}", "note", f"no answer within {timeout:.0f} s", repair)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    if line is None:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check(f"Backend {name}", "note", f"installed but does not work: {reason}", repair)
    facts = json.loads(line.removeprefix("RESULT"))
    return Check(f"Backend {name}", "ok", f"{_version(package)}, keras {facts['keras']}, device {facts['device']}")


def _choice(working: list[str]) -> Check:
    if not working:
        remedy = 'pip install "keras_microseg[jax]" (or [torch], [tensorflow]); --method classical works without'
        return Check("Networks", "missing", "no backend works", remedy)
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted and wanted not in working:
        remedy = f"Set KERAS_BACKEND to {' or '.join(working)}, or leave it unset."
        return Check("Networks", "missing", f"KERAS_BACKEND={wanted} does not work", remedy)
    reason = "KERAS_BACKEND" if wanted else "the first that works"
    return Check("Networks", "ok", f"would run on {wanted or working[0]} ({reason})")


def _model() -> Check:
    from keras_microseg.workflows.segment_images import default_model_path

    path = default_model_path()
    if not path.is_file():
        return Check("Default model", "note", "not in this installation", "Pass --model, or use --method classical.")
    return Check("Default model", "ok", f"{path.name}, {path.stat().st_size / 1e6:.1f} MB")


def _disk() -> Check:
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free / 1e6
    text = f"{free / 1000:.1f} GB free in {folder}"
    if free < _NEEDED_MEGABYTES:
        return Check("Disk", "note", text, f"Free some space, at least {_NEEDED_MEGABYTES} MB.")
    return Check("Disk", "ok", text)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
