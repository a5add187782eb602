import pytest

from keras_microseg.checks import FileError
from keras_microseg.io.reference_layout import find_reference_folders, resolve_inputs


def make(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)


def test_a_project_of_the_source_is_found(tmp_path):
    make(tmp_path, "Input_Images", "input_masks", "2_CycleGAN/data/trainB", "Output_Masks_UNet")
    found = find_reference_folders(tmp_path)
    assert found.images == tmp_path / "Input_Images" and found.outlines == tmp_path / "input_masks"
    assert found.simulated_masks == tmp_path / "2_CycleGAN" / "data" / "trainB" and found.tiles is None
    assert found.masks.name == "Output_Masks_UNet"
    assert resolve_inputs(tmp_path) == (found.images, found.outlines)
    assert resolve_inputs(tmp_path, tmp_path / "x") == (found.images, tmp_path / "x")


def test_other_folders_stay_what_they_are(tmp_path):
    make(tmp_path, "scans")
    assert find_reference_folders(tmp_path) is None and resolve_inputs(tmp_path / "scans") == (tmp_path / "scans", None)
    with pytest.raises(FileError, match="not a folder"):
        find_reference_folders(tmp_path / "nowhere")


def test_the_workflow_takes_the_root_of_a_project(tmp_path):
    from keras_microseg.workflows.sem_particles.settings import Settings

    make(tmp_path, "Input_Images", "Input_Masks")
    settings = Settings.from_preset("fast", tmp_path)
    assert settings.images == (str(tmp_path / "Input_Images"),) and settings.outlines == str(tmp_path / "Input_Masks")
    assert settings.particles == "wgan" and Settings.from_preset("fast", "scans").images == ("scans",)
