"""Cathode particles by the command line alone: annotations of two formats to particles, detachment and report."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


@pytest.mark.slow
def test_from_annotations_to_the_report(tmp_path):
    import particle_path

    scores = particle_path.run(particle_path.TINY, tmp_path, source="coco")
    assert list(scores["phases"]) == ["exact", "otsu", "network"]
    assert (scores["f1"] > 0.1).all() and (scores["mean_iou"] > 0.5).all()  # of a detector that saw 120 batches
    assert scores["count_error"].between(-0.5, 1).all()

    again = particle_path.run(particle_path.TINY, tmp_path, source="via", views=("z", "x"), phases=("exact",))
    assert (again["mean_iou"] > 0.5).all()  # the slices and volumes are those of the first run
