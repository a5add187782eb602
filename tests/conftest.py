"""Shared by all tests: which part of the suite runs, the backend, the place of real data."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No time limits: machines differ, and a busy one is no bug. The same examples on every run.
settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

ROOT = Path(__file__).resolve().parent.parent
NETWORK_PACKAGES = ("keras", "jax", "torch", "tensorflow")
NETWORK_IMPORT = re.compile(
    r"^(?:import keras\b|from keras(?:\.\S+)? import|import harness|from harness import"
    r"|from keras_microseg(?:\.(?:backend|layers|losses|models|training|data|inference))(?:\.\S+)? import"
    r"|from keras_microseg import .*\b(?:backend|layers|losses|models|training|data|inference)\b"
    r"|import keras_microseg\.(?:backend|layers|losses|models|training|data|inference))",
    re.MULTILINE,
)
LOCAL_IMPORT = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
ARRAYS_ONLY = os.environ.get("MICROSEG_ARRAYS_ONLY") == "1"


class _WithoutNetworks(importlib.machinery.PathFinder):
    """Finds every module but keras and the frameworks, as on a machine where they are not installed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in NETWORK_PACKAGES:
            return None
        return super().find_spec(fullname, path, target)


if ARRAYS_ONLY:
    sys.meta_path = [
        _WithoutNetworks if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
    ]
HAS_KERAS = importlib.util.find_spec("keras") is not None
if HAS_KERAS:
    from keras_microseg import backend

    backend.select()


@functools.cache
def imports_networks(path: Path) -> bool:
    """Whether a module of the tests imports keras, itself or through a helper module beside this file."""
    text = path.read_text(encoding="utf-8")
    helpers = (ROOT / "tests" / f"{name}.py" for name in LOCAL_IMPORT.findall(text))
    return bool(NETWORK_IMPORT.search(text)) or any(imports_networks(helper) for helper in helpers if helper.is_file())


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without keras, leave out the test modules that import it."""
    if not HAS_KERAS and collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        if imports_networks(collection_path):
            return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of a module that imports keras as `network`; without keras, skip the tests so marked."""
    for item in items:
        if imports_networks(item.path) or 'importorskip("keras")' in item.path.read_text(encoding="utf-8"):
            item.add_marker("network")
    if HAS_KERAS:
        return
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.skip(reason="needs keras and a backend"))


def pytest_report_header() -> str:
    return f"keras_microseg on {os.environ.get('KERAS_BACKEND') if HAS_KERAS else 'arrays only, without keras'}"


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """Each test that runs with keras loaded starts from the same seed and from float32."""
    if "keras" in sys.modules and HAS_KERAS:
        import keras

        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real images: MICROSEG_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("MICROSEG_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set MICROSEG_DATA")
    return folder
