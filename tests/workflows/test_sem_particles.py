"""The label-free workflow, with tiny networks: start to finish, killed in every step, and wrong inputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small_sem_run  # noqa: E402

from keras_microseg import io  # noqa: E402
from keras_microseg.checks import FileError, UserError  # noqa: E402
from keras_microseg.inference import Segmenter  # noqa: E402
from keras_microseg.models.saving import load_model  # noqa: E402
from keras_microseg.workflows import sem_particles  # noqa: E402
from keras_microseg.workflows.sem_particles.translation import judge_pairs  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sem")
    small_sem_run.make_inputs(folder)
    return folder


def weights(path):
    return [np.array(weight) for weight in load_model(path)[0].get_weights()]


def test_from_images_and_outlines_to_particles(inputs, tmp_path):
    outcome = small_sem_run.run(inputs, tmp_path / "run")
    assert not outcome.failures
    steps = json.loads((outcome.path / "manifest.json").read_text(encoding="utf-8"))["steps"]
    assert [step["status"] for step in steps.values()] == ["done"] * len(sem_particles.STEPS)
    pairs = json.loads((outcome.path / "pairs.json").read_text(encoding="utf-8"))
    assert len(pairs["kept"]) + len(pairs["dropped"]) == 12
    image = np.asarray(io.open_image(outcome.path / "pairs" / "images" / "00000.tif").data)
    assert image.shape == (96, 96) and image.dtype == np.uint8 and image.std() > 1
    log = (outcome.path / "translation" / "log.csv").read_text().splitlines()[0]
    assert all(name in log for name in ("texture_distance", "variety", "contrast"))
    text = outcome.report_path.read_text(encoding="utf-8")
    for heading in ("Images", "Outlines", "Masks", "Translation", "Generated pairs", "Segmentation network", "Result"):
        assert f">{heading}</h2>" in text
    labels = Segmenter(outcome.model_path).segment(np.zeros((70, 80), np.uint8)).labels
    assert labels.shape == (70, 80) and not labels.any()
    with pytest.raises(FileError, match="translation.epochs=2 -> 3"):
        small_sem_run.run(inputs, tmp_path / "run", resume=True, translation_epochs=3)


@pytest.mark.slow
def test_killed_in_every_step_it_ends_the_same(inputs, tmp_path):
    whole = small_sem_run.run(inputs, tmp_path / "whole")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, small_sem_run.__file__, str(inputs), str(tmp_path / "killed")]
    for step in ("look", "outlines", "simulate", "translate", "pairs", "train", "segment"):
        ended = subprocess.run([*command, step], env=environment, check=False, capture_output=True, text=True)
        assert ended.returncode == -9, f"{step}: {ended.stderr[-2000:]}"
    resumed = small_sem_run.run(inputs, tmp_path / "killed", resume=True)
    for a, b in zip(weights(whole.model_path), weights(resumed.model_path), strict=True):
        np.testing.assert_array_equal(a, b)
    tables = [path.read_text(encoding="utf-8") for path in (whole.particles_path, resumed.particles_path)]
    assert [line for line in tables[0].splitlines() if line[0] != "#"] == [
        line for line in tables[1].splitlines() if line[0] != "#"
    ]


def test_presets_and_old_names():
    settings = sem_particles.Settings.from_legacy(
        "paper", ROOT_DIR="data/", TILE_SIZE_W=256, TILE_SIZE_H=320, DARK_BACKGROUND=False, WGAN_EPOCHS=7,
        CYCLEGAN_EPOCHS=3, CYCLEGAN_USE_SKIPS=True, CYCLEGAN_FILTERS=32, MAX_PARTICLE_OVERLAP=0.05, UNET_EPOCHS=4,
        GAUSSIAN_BLUR_AMOUNT=0.5, USE_GPUS_NO=2, UNET_CONTRAST_OPTIMIZATION_RANGE=(1, 99), NUM_SIMULATED_MASKS=1200,
    )  # fmt: skip
    assert settings.images == ("data/Input_Images",) and settings.outlines == "data/Input_Masks"
    assert settings.masks.size == (320, 256) and settings.translation.tile == 256
    assert (
        settings.masks.max_overlap == 0.05
        and settings.masks.mode == sem_particles.Settings.from_preset("paper", "a", "b").masks.mode
    )
    assert settings.polarity == "dark" and settings.outline_epochs == 7 and settings.num_masks == 1200
    assert settings.translation.epochs == 3 and settings.translation.skip and settings.translation.filters == 32
    assert settings.network.epochs == 4 and settings.pairs.blur == 0.5 and settings.contrast == (1, 99)
    assert settings.network.outputs == "binary" and settings.network.start == "none"
    with pytest.raises(UserError, match="CYCLEGAN_EPOCH.*CYCLEGAN_EPOCHS"):
        sem_particles.Settings.from_legacy(ROOT_DIR=".", CYCLEGAN_EPOCH=1)
    with pytest.raises(UserError, match="no setting 'translation_epoch'"):
        sem_particles.Settings.from_preset("fast", "images", "outlines", translation_epoch=1)
    with pytest.raises(UserError, match="folder of single-particle masks"):
        sem_particles.Settings.from_preset("fast", "images", None, particles="wgan")


def test_a_plan_costs_more_for_more_epochs_and_writes_nothing(inputs):
    make = sem_particles.Settings.from_preset
    one, two = (
        sem_particles.make_plan(
            make("fast", inputs / "images", inputs / "outlines", **small_sem_run.SMALL | {"translation_epochs": epochs})
        )
        for epochs in (100, 200)
    )
    times = [{step.name: step.seconds for step in plan.steps} for plan in (one, two)]
    assert one.images == 6 and list(times[0]) == [step.name for step in sem_particles.STEPS]
    work = [time["translate"] * plan.speed for time, plan in zip(times, (one, two), strict=True)]
    assert work[1] == pytest.approx(2 * work[0])


def test_wrong_inputs_are_explained_before_hours_are_spent(inputs, tmp_path):
    with pytest.raises(UserError, match="polarity='bright'"):
        small_sem_run.run(inputs, tmp_path / "dark", polarity="dark")
    few = tmp_path / "few"
    few.mkdir()
    for folder in ("images", "outlines"):
        (few / folder).mkdir()
        for path in sorted((inputs / folder).iterdir())[:2]:
            (few / folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="2 usable outlines are too few"):
        small_sem_run.run(few, tmp_path / "few_run")
    assert not (tmp_path / "few_run").exists()
    with pytest.raises(UserError, match="2 usable images are too few"):
        small_sem_run.run(few, tmp_path / "few_run", particles="analytic")
    with pytest.raises(UserError, match="Use a smaller tile"):
        small_sem_run.run(inputs, tmp_path / "large", masks_size=(256, 256), translation_tile=192)


def test_a_broken_image_is_left_out_and_named(inputs, tmp_path):
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    for path in (inputs / "images").iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    (folder / "images" / "broken.tif").write_bytes(b"II*\0 no tiff")
    io.write_image(folder / "images" / "flat.png", np.full((128, 128), 9, np.uint8), axes="YX")
    outcome = small_sem_run.run(folder, tmp_path / "run", until="look", particles="analytic")
    assert sorted(Path(failure.item).name for failure in outcome.failures) == ["broken.tif", "flat.png"]


def test_pairs_that_do_not_show_their_mask_are_dropped():
    facts = {f"{i:05d}": {"agreement": 0.9 + 0.001 * i, "particles": 5, "unpainted": 0} for i in range(20)}
    facts["bad"] = {"agreement": 0.55, "particles": 5, "unpainted": 3}
    judged = judge_pairs(facts, None, "network")
    assert judged["dropped"] == ["bad"] and len(judged["kept"]) == 20 and judged["unpainted_particles"] == 3
    with pytest.raises(UserError, match="Only 0 of 21"):
        judge_pairs(facts, 0.99, "network")
