import numpy as np

from keras_microseg.data.targets import MAPS, contact_boundary, instance_maps, relative_distance


def two_squares():
    labels = np.zeros((20, 30), np.int32)
    labels[5:15, 5:15] = 1
    labels[5:15, 15:25] = 2
    return labels


def test_contact_boundary_lies_between_instances_only():
    boundary = contact_boundary(two_squares())
    rows, columns = np.nonzero(boundary)
    assert set(columns) == {14, 15} and set(rows) == set(range(5, 15))


def test_distance_is_one_at_the_heart_and_small_at_the_edge():
    labels = two_squares()
    distance = relative_distance(labels)
    assert distance[labels == 0].max() == 0
    for label in (1, 2):
        assert distance[labels == label].max() == 1
    # edge pixels are half a pixel from the edge; the largest distance in a 10 x 10 square is 4.5
    np.testing.assert_allclose(distance[5, 7], 0.5 / 4.5)
    np.testing.assert_allclose(distance[9, 14], 0.5 / 4.5)


def test_a_particle_cut_by_the_frame_keeps_its_maximum_there():
    labels = np.zeros((20, 20), np.int32)
    labels[0:6, 5:15] = 1
    distance = relative_distance(labels)
    assert distance[0, 9] == 1


def test_full_frame_is_all_inside():
    np.testing.assert_array_equal(relative_distance(np.ones((4, 5), np.int32)), 1)


def test_flow_points_to_the_centre():
    labels = np.zeros((41, 41), np.int32)
    yy, xx = np.mgrid[:41, :41]
    labels[(yy - 20) ** 2 + (xx - 20) ** 2 < 200] = 7
    maps = instance_maps(labels)
    assert maps.shape == (41, 41, len(MAPS)) and maps.dtype == np.float32
    flow_y, flow_x = maps[..., 3], maps[..., 4]
    np.testing.assert_allclose(flow_y[30, 20], -10 / 12, rtol=1e-5)
    np.testing.assert_allclose(flow_x[20, 12], 8 / 10, rtol=1e-5)
    assert flow_y[20, 20] == 0 and flow_y[labels == 0].max() == 0


def test_empty_labels():
    assert instance_maps(np.zeros((8, 8), np.int32)).max() == 0
