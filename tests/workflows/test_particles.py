"""The detector's workflows on simulated discs: train, resume, detect, evaluate, slices, inspect, wrong input."""

import dataclasses
import json

import numpy as np
import pytest

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations import AnnotatedImage, Annotations, trace_labels, write_annotations
from keras_microseg.models.mask_rcnn import mask_rcnn
from keras_microseg.models.saving import load_model, save_model
from keras_microseg.workflows import particle_train
from keras_microseg.workflows.particle_evaluate import evaluate_particles
from keras_microseg.workflows.particle_inspect import inspect_particles
from keras_microseg.workflows.particle_slices import detect_slices
from keras_microseg.workflows.particle_train import ParticleTrainSettings, load_data, train_particles
from keras_microseg.workflows.segment_images import segment

pytest.importorskip("keras")

TINY = {
    "tile": 64,
    "epochs": 2,
    "steps_per_epoch": 1,
    "batch_size": 2,
    "minutes": None,
    "changes": {
        "pyramid_width": 16, "rpn_width": 16, "box_width": 32, "mask_width": 16, "mask_convs": 1, "proposals": 16,
        "train_proposals": 24, "pre_nms": 32, "rois": 16, "detections": 16,
    },
}  # fmt: skip


def discs(seed, size=96, count=6):
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    for k in range(1, count + 1):
        cy, cx = rng.uniform(10, size - 10, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= rng.uniform(6, 10) ** 2
        labels[inside & (labels == 0)] = k
    image = np.where(labels > 0, 180, 60) + rng.normal(0, 8, labels.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three images; as labels and as a COCO file."""
    folder = tmp_path_factory.mktemp("data")
    notes = []
    for k in range(3):
        image, labels = discs(k)
        for name in ("images", "labels"):
            (folder / name).mkdir(exist_ok=True)
        io.write_image(folder / "images" / f"a{k}.png", image)
        io.write_labels(folder / "labels" / f"a{k}.tif", labels)
        regions = [dataclasses.replace(region, category="grain") for region in trace_labels(labels)]
        notes.append(AnnotatedImage(f"a{k}.png", tuple(regions), labels.shape))
    write_annotations(folder / "coco.json", Annotations(tuple(notes), ("grain",)), "coco")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    settings = ParticleTrainSettings.of_preset(str(data), **TINY)
    return train_particles(settings, tmp_path_factory.mktemp("model"))


def test_a_trained_model_knows_what_it_needs(trained):
    model, card = load_model(trained.model_path)
    assert card["kind"] == "detector" and card["categories"] == ["particle"]
    assert card["training"]["images"] == 2 and card["training"]["validation_images"] == 1
    assert 0 < card["min_score"] < 1 and set(trained.scores) >= {"ap", "ap50", "ap75", "precision", "recall"}
    assert model.settings.max_instances >= 6 and len(trained.history) == 2


def test_training_resumes_and_refuses_what_differs(trained, data):
    settings = ParticleTrainSettings.of_preset(str(data), **TINY)
    out = trained.model_path.parent
    with pytest.raises(FileError, match="already holds a training"):
        train_particles(settings, out)
    again = train_particles(settings, out, resume=True)  # ended already: gives its result
    assert [row["loss"] for row in again.history] == [row["loss"] for row in trained.history]
    other = ParticleTrainSettings.of_preset(str(data), **{**TINY, "learning_rate": 0.5})
    with pytest.raises(FileError, match="learning_rate=0.001 -> 0.5"):
        train_particles(other, out, resume=True)


def test_the_budget_follows_the_amount_of_images(data):
    assert ParticleTrainSettings.of_preset(str(data)).minutes == "auto"
    assert particle_train._fitting_minutes(3 * 96**2) < 11 and particle_train._fitting_minutes(4.7e6) == 35
    with pytest.raises(UserError, match="minutes"):
        ParticleTrainSettings.of_preset(str(data), minutes="soon")


def test_progress_knows_the_planned_epochs(data, tmp_path):
    seen = []
    settings = ParticleTrainSettings.of_preset(str(data), **{**TINY, "epochs": 200, "minutes": 1e-3})
    train_particles(settings, tmp_path, progress=lambda step, done, total, item: seen.append((done, total)))
    assert seen[0] == (0, 1) and seen[-1] == (1, 1)  # one epoch, not the 200 that there was no time for
    assert {total for _, total in seen} == {1}


def test_coco_and_labels_are_the_same_data(data, tmp_path):
    settings = ParticleTrainSettings.of_preset(
        str(data / "images"), annotations=str(data / "coco.json"), use_categories=True
    )
    images, categories, problems = load_data(settings)
    assert categories == ("grain",) and not [problem for problem in problems if problem.is_error]
    for one, other in zip(images, load_data(ParticleTrainSettings.of_preset(str(data)))[0], strict=True):
        np.testing.assert_array_equal(one.label_image() > 0, other.label_image() > 0)
        np.testing.assert_allclose(one.image, other.image)


def test_detect_writes_labels_scores_and_report(trained, data, tmp_path):
    results = segment(data / "images", tmp_path / "out", model=str(trained.model_path), min_score=0.01)
    assert len(results.images) == 3 and not results.failures and results.report_path.is_file()
    record = results.images[0]
    labels = np.asarray(record.read_labels())
    assert labels.shape == (96, 96) and labels.max() == len(results.table[results.table["image"] == record.name])
    assert {"score", "cut"} <= set(results.table.columns) and results.table["score"].between(0.01, 1).all()
    assert "Mask R-CNN" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    scores = evaluate_particles(tmp_path / "out", data / "labels", tmp_path / "scores.json", resamples=20)
    again = evaluate_particles(tmp_path / "out", data / "coco.json", images=data / "images", resamples=20)
    assert scores["ap50"] == again["ap50"] and scores["f1"] == again["f1"]
    assert json.loads((tmp_path / "scores.json").read_text())["scores"]["pq"][0] == pytest.approx(scores["pq"])


def test_perfect_labels_score_one_by_strata(data, tmp_path):
    table = "image,label,state\n" + "".join(
        f"a{k},{n},{'cracked' if n % 2 else 'intact'}\n" for k in range(3) for n in range(1, 7)
    )
    (tmp_path / "states.csv").write_text(table)
    scores = evaluate_particles(data / "labels", data / "labels", strata=tmp_path / "states.csv", resamples=20)
    assert scores["ap"] == scores["f1"] == scores["pq"] == 1 and scores["count_error"] == 0
    assert scores.strata["stratum"].tolist() == ["cracked", "intact"] and (scores.strata["recall"] == 1).all()


def test_slices_of_a_volume_are_labelled_one_by_one(trained, tmp_path):
    volume = np.stack([discs(k)[0] for k in range(4)])[:, :8]
    io.write_image(tmp_path / "scan.tif", volume, axes="ZYX")
    folder = detect_slices(tmp_path / "scan.tif", trained.model_path, tmp_path / "z", min_score=0.01)
    assert [path.name for path in sorted(folder.iterdir())] == [f"z{k}.tif" for k in range(4)]
    assert (tmp_path / "z" / "detections.csv").is_file()
    across = detect_slices(tmp_path / "scan.tif", trained.model_path, tmp_path / "y", axis="y", min_score=0.5)
    assert len(list(across.iterdir())) == 8


def test_inspect_shows_every_stage(trained, data, tmp_path):
    page = inspect_particles(
        data / "images" / "a0.png", trained.model_path, tmp_path, labels=data / "labels" / "a0.tif", min_score=0.01
    )
    text = page.read_text(encoding="utf-8")
    for word in ("Anchors", "Region proposals", "before suppression", "Masks", "Activations", "Weights", "True boxes"):
        assert word in text


def test_wrong_input_says_what_to_do(trained, data, tmp_path):
    with pytest.raises(UserError, match="--annotations"):
        load_data(ParticleTrainSettings.of_preset(str(data / "images")))
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(UserError):
        load_data(ParticleTrainSettings.of_preset(str(data / "images"), annotations=str(tmp_path / "empty.json")))
    with pytest.raises(UserError, match="validation"):
        train_particles(
            ParticleTrainSettings.of_preset(str(data), **{**TINY, "validation": ("nope.png",)}), tmp_path / "m"
        )
    coco = json.loads((data / "coco.json").read_text())
    coco["images"].append({"id": 99, "file_name": "absent.png", "height": 96, "width": 96})
    ghost = {"id": 999, "image_id": 99, "category_id": coco["categories"][0]["id"], "bbox": [0, 0, 9, 9], "area": 40}
    coco["annotations"].append({**ghost, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 0})
    (tmp_path / "absent.json").write_text(json.dumps(coco))
    images, _, problems = load_data(
        ParticleTrainSettings.of_preset(str(data / "images"), annotations=str(tmp_path / "absent.json"))
    )
    assert len(images) == 3 and any("absent.png" in str(problem) for problem in problems)
    other = tmp_path / "other.keras"
    save_model(mask_rcnn("light", tile_size=64), other, {"kind": "detector"})
    with pytest.raises(UserError, match="corner"):
        inspect_particles(data / "images" / "a0.png", other, tmp_path, corner=(500, 0))
