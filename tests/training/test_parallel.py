"""Training on several devices ends where one device ends on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_microseg.backend import parallel
from keras_microseg.checks import UserError
from keras_microseg.models.saving import load_model

pytestmark = pytest.mark.network
HERE = Path(__file__).parent


def run(devices, out, norm="group"):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "KERAS_BACKEND": keras.config.backend(),
    }
    command = [sys.executable, str(HERE / "parallel_run.py"), str(devices), str(out), norm]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = (out / "log.csv").read_text().splitlines()
    model, _ = load_model(out / "last.keras")
    return [row.split(",")[:5] for row in rows], model.get_weights()


def test_two_devices_equal_one(tmp_path):
    """The same seeds and batches; each device takes half of every batch."""
    log, weights = run(1, tmp_path / "one")
    shared_log, shared = run(2, tmp_path / "two")
    assert shared_log[0] == log[0]
    np.testing.assert_allclose(np.array(shared_log[1:], float), np.array(log[1:], float), rtol=2e-4)
    for ours, theirs in zip(shared, weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["status"] == "finished"


def test_more_devices_than_there_are():
    if keras.config.backend() == "torch":
        pytest.skip("on a CPU PyTorch takes any number of processes")
    with pytest.raises(UserError, match="devices=64"):
        parallel.run(print, 64)
    assert parallel.count() == 1 and parallel.run(lambda index: index + 5, 1) == 5
