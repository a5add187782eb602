import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.simulation.particles import ANGLES, SHAPES, draw_shapes, edge_coordinate, shapes_from_masks


@pytest.mark.parametrize("kind", SHAPES)
def test_profiles_have_the_area_of_the_unit_disc(kind):
    shapes = SHAPES[kind](np.random.default_rng(0), 50)
    area = 0.5 * (shapes.profile.astype(float) ** 2).sum(axis=1) * 2 * np.pi / ANGLES
    np.testing.assert_allclose(area, np.pi, rtol=1e-5)
    assert np.isfinite(shapes.profile).all() and (shapes.profile > 0).all()
    assert shapes.profile.max() < 4, "no spikes"


@given(diameter=st.floats(12, 60), angle=st.floats(0, 6.28), kind=st.sampled_from(sorted(SHAPES)))
@settings(max_examples=40, deadline=None)
def test_drawn_area_is_that_of_the_disc_of_the_same_diameter(diameter, angle, kind):
    shapes = SHAPES[kind](np.random.default_rng(3), 1)
    n = 260
    rows = np.arange(n, dtype=np.float32)[:, None] - n / 2
    columns = np.arange(n, dtype=np.float32)[None, :] - n / 2
    u = edge_coordinate(shapes.profile[0], diameter / 2, angle, float(shapes.bend[0]), rows, columns)
    # counting pixel centres is unbiased; its error grows with the perimeter, about 0.4 sqrt(perimeter) pixels
    assert abs((u < 1).sum() - np.pi / 4 * diameter**2) < 0.035 * np.pi / 4 * diameter**2 + 8


def test_draw_shapes_follows_weights():
    shapes = draw_shapes(np.random.default_rng(1), 4000, {"disc": 3, "rod": 1})
    assert len(shapes) == 4000
    assert 0.72 < (shapes.kind == "disc").mean() < 0.78


def test_outlines_from_masks_keep_their_shape():
    yy, xx = np.mgrid[:64, :64]
    ellipse = ((yy - 30) / 24) ** 2 + ((xx - 33) / 12) ** 2 < 1
    ellipse[28:32, 30:34] = False  # a hole is filled
    shapes = shapes_from_masks([ellipse * 255])
    radius = np.sqrt(24 * 12)
    down, right = shapes.profile[0][ANGLES // 4] * radius, shapes.profile[0][0] * radius
    assert abs(down - 24) < 1 and abs(right - 12) < 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.zeros((9, 9)), "no particle"), (np.eye(9) + 1 > 1, "touches the frame"), (np.zeros((3, 3, 3)), "2-D")],
)
def test_unusable_outlines_are_named(mask, message):
    with pytest.raises(UserError, match=f"p1.png: .*{message}"):
        shapes_from_masks([mask], names=["p1.png"])
