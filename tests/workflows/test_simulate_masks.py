import numpy as np
import pandas as pd
import pytest
import tifffile

from keras_microseg.checks import UserError
from keras_microseg.simulation import MaskSettings, Particles
from keras_microseg.workflows.simulate_masks import simulate_masks

PARTICLES = Particles.analytic(seed=1, count=20, median=12.0)
SETTINGS = MaskSettings(size=(64, 80), coverage=(0.2,))


def read(folder):
    return {path.relative_to(folder).as_posix(): tifffile.imread(path) for path in sorted(folder.rglob("*.tif"))}


def test_files_resume_and_determinism(tmp_path):
    whole = read(simulate_masks(tmp_path / "whole", PARTICLES, SETTINGS, 4, seed=7))
    assert list(whole) == [f"{kind}/0000{i}.tif" for kind in ("labels", "masks") for i in range(4)]
    assert whole["masks/00000.tif"].dtype == np.uint8 and set(np.unique(whole["masks/00000.tif"])) == {0, 255}

    class Stop(Exception):
        pass

    def progress(step, done, total, item):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        simulate_masks(tmp_path / "part", PARTICLES, SETTINGS, 4, seed=7, progress=progress)
    assert len(read(tmp_path / "part")) == 4
    resumed = read(simulate_masks(tmp_path / "part", PARTICLES, SETTINGS, 4, seed=7, resume=True))
    assert whole.keys() == resumed.keys() and all(np.array_equal(whole[k], resumed[k]) for k in whole)
    table = pd.read_csv(tmp_path / "part" / "masks.csv", comment="#")
    assert len(table) == 4 and abs(table["coverage"].mean() - 0.2) < 0.03


def test_other_settings_or_particles_are_refused(tmp_path):
    simulate_masks(tmp_path, PARTICLES, SETTINGS, 1)
    with pytest.raises(UserError, match="seed=0 -> 1"):
        simulate_masks(tmp_path, PARTICLES, SETTINGS, 1, seed=1, resume=True)
    with pytest.raises(UserError, match="particles="):
        simulate_masks(tmp_path, Particles.analytic(seed=2, count=20), SETTINGS, 1, resume=True)
    with pytest.raises(UserError, match="already holds"):
        simulate_masks(tmp_path, PARTICLES, SETTINGS, 1)
