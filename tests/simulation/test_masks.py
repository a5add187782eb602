import numpy as np
import pytest
from scipy import ndimage

from keras_microseg.checks import FileError, UserError
from keras_microseg.simulation import MaskSettings, Particles, simulate_mask

PARTICLES = Particles.analytic(seed=1, count=60, median=14.0, spread=0.2)
SIZE = (120, 160)


def make(seed=0, **settings):
    return simulate_mask(np.random.default_rng(seed), PARTICLES, MaskSettings(size=SIZE, **settings))


@pytest.mark.parametrize("mode", ["random", "noise", "clusters", "packed", "hexagonal", "cubic"])
@pytest.mark.parametrize("patches", [False, True])
def test_labels_and_mask_agree(mode, patches):
    made = make(mode=mode, patches=patches, count=(30, 40))
    assert made.labels.shape == made.mask.shape == SIZE
    assert made.labels.dtype == np.int32 and set(np.unique(made.mask)) <= {0, 255}
    assert made.facts["particles"] == made.labels.max() > 3
    assert ((made.labels > 0) | (made.mask == 0)).all(), "the mask lies inside the particles"
    # 8-connected parts of the mask never hold two particles
    parts, _ = ndimage.label(made.mask, np.ones((3, 3)))
    inside = made.mask > 0
    pairs = np.unique(np.stack([parts[inside], made.labels[inside]]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1], "each part belongs to one particle"


def test_patches_leave_empty_area():
    full, patched = make(mode="cubic"), make(mode="cubic", patches=True, noise_threshold=0.7)
    assert patched.facts["coverage"] < 0.6 * full.facts["coverage"]


@pytest.mark.parametrize("goal", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("mode", ["random", "clusters", "hexagonal"])
def test_coverage_is_met(goal, mode):
    found = [make(seed, coverage=(goal,), mode=mode, touch=0.8).facts["coverage"] for seed in range(5)]
    # a particle of 14 px is 0.8 % of this mask: the last one drawn may miss the goal by half of it
    assert abs(np.mean(found) - goal) < 0.015


def test_coverage_follows_the_given_quantiles():
    found = [make(seed, coverage=(0.05, 0.1, 0.45)).facts["coverage"] for seed in range(40)]
    assert 0.04 < min(found) and max(found) < 0.46
    assert 0.25 < np.mean(np.array(found) > 0.1) < 0.75


def test_counts_sizes_and_factors():
    counts = [make(seed, count=(20, 20), max_overlap=1.0).facts["particles"] for seed in range(12)]
    # 20 centres in the mask on average; those at the rim of it show as well, hidden ones do not
    assert 18 < np.mean(counts) < 32
    settings = {"coverage": (0.15,), "max_overlap": 0.0}
    own, set_size = make(**settings), make(**settings, diameter=(20.0, 0.05))
    assert own.facts["median_diameter"] < 16 and abs(set_size.facts["median_diameter"] - 20) < 2.5
    uniform = make(**settings, scaling="uniform", scale_mean=1.5, scale_spread=0.25)
    assert uniform.facts["median_diameter"] > 1.25 * own.facts["median_diameter"]


def test_overlap_limit_hides_less():
    hidden = [make(0, coverage=(0.4,), max_overlap=limit).facts["hidden"] for limit in (0.0, 0.05, 0.5)]
    assert hidden[0] == 0 and hidden[0] < hidden[1] < hidden[2]


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_gap_parts_touching_particles(gap):
    made = make(coverage=(0.5,), mode="clusters", touch=0.8, gap=gap)
    lost = np.count_nonzero(made.labels) - np.count_nonzero(made.mask)
    assert (lost == 0) == (gap == 0)


def test_mask_is_a_function_of_the_generator():
    assert np.array_equal(make(3).labels, make(3).labels) and not np.array_equal(make(3).labels, make(4).labels)


def test_options_by_their_old_names():
    settings = MaskSettings.from_legacy(
        use_perlin_noise=False, use_normal_distribution=False, min_scaling=0.5, max_scaling=1.0,
        use_random_rotation="PERLIN", grid_type="CUBIC", grid_spacing_factor=0.5, grid_noise_factor=0.05,
        MAX_PARTICLE_OVERLAP=None, TILE_SIZE_W=128, TILE_SIZE_H=96, outline_size=64, diameter=32,
    )  # fmt: skip
    assert settings.size == (96, 128) and settings.mode == "cubic" and settings.rotation == "correlated"
    assert (settings.scaling, settings.scale_mean, settings.scale_spread) == ("uniform", 0.75, 0.25)
    assert settings.max_overlap == 1.0 and settings.spacing == 1.0 and not settings.patches and settings.order == "scan"
    assert MaskSettings.from_legacy().mode == "noise" and MaskSettings.paper().patches
    with pytest.raises(UserError, match="no option 'gird_type'"):
        MaskSettings.from_legacy(gird_type="CUBIC")


@pytest.mark.parametrize(
    "bad",
    [{"count": (9, 3)}, {"coverage": (0.5, 0.1)}, {"coverage": (1.0,)}, {"gap": 3}, {"scaling": "log"},
     {"scale_spread": 1.0}, {"diameter": (1, 0.1)}, {"mode": "perlin"}, {"coverage": (0.1,), "order": "scan"}],
)  # fmt: skip
def test_settings_are_checked(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        MaskSettings(**bad)


def test_particles_are_stored(tmp_path):
    PARTICLES.save(tmp_path / "p.npz")
    loaded = Particles.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(loaded.shapes.profile, PARTICLES.shapes.profile)
    np.testing.assert_array_equal(loaded.diameters, PARTICLES.diameters)
    (tmp_path / "q.npz").write_bytes(b"x")
    with pytest.raises(FileError, match="no particles"):
        Particles.load(tmp_path / "q.npz")
