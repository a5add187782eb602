"""Large class maps: no seams, any block by itself, ledgers, damaged input, memory."""

import json
import threading

import numpy as np
import pytest
from map_models import CARD, write_map_model

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.image import LazyArray, PixelSize
from keras_microseg.inference.ledger import Ledger
from keras_microseg.inference.map_engine import MapEngine, MapPlan, split_shards
from keras_microseg.inference.prediction import Predictor, predict_maps
from keras_microseg.inference.seam_audit import audit_seams
from keras_microseg.intensity import Normalizer
from keras_microseg.io.map_store import CLASSES, CONFIDENCE, GREY, PROBABILITIES, MapStore
from keras_microseg.models import saving
from keras_microseg.simulation import Rock, RockSettings

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_map_model(tmp_path_factory.mktemp("model") / "small.keras")


@pytest.fixture(scope="module")
def sem():
    return Rock(RockSettings(shape=(203, 250), grain_size=30, sem_field=0)).sem[...]


def plan_of(folder, model, image, **changes):
    options = {
        "image": image, "factor": 1.0, "shape": image.shape[:2], "tile": (64, 64), "halo": (16, 16), "multiple_of": 4,
        "block": 2, "model": str(model), "normalizer": Normalizer("fixed", 0.0, 255.0), "store": str(folder / "m.zarr"),
        "ledger": str(folder / "ledger"), "key": {"tile": 64}, **changes,
    }  # fmt: skip
    plan = MapPlan(**options)
    edges = [min(plan.block * s, n) for s, n in zip(plan.grid.stride, plan.shape, strict=True)]
    MapStore.create(plan.store, plan.shape, edges, grey_type=image.dtype, confidence=plan.confidence,
                    probabilities=4 if plan.probabilities else 0)  # fmt: skip
    return plan


def whole(model, image, **options):
    """Maps of one tile over the whole image and its mirrored surroundings."""
    network, card = saving.load_model(model)
    return predict_maps(Predictor(network, card), image / np.float32(255), tile=(240, 288), halo=16, **options)


@pytest.mark.parametrize("flips", [0, 4, 8])
def test_tiles_equal_one_tile_over_the_whole_image(tmp_path, model, sem, flips):
    plan = plan_of(tmp_path, model, sem, flips=flips, confidence=True, probabilities=True, batch_size=3)
    times = MapEngine(plan).run(plan.blocks())
    store = MapStore(plan.store)
    expected = whole(model, sem, flips=4 if flips else 0)
    if flips < 8:
        probabilities = np.moveaxis(store.array(PROBABILITIES)[...], 0, -1)
        assert np.abs(probabilities - 255.0 * expected).max() <= 0.8
        classes, best = store.array(CLASSES)[...], np.sort(expected, axis=-1)
        clear = best[..., -1] - best[..., -2] > 1e-3
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(classes[clear], expected.argmax(axis=-1)[clear])
        assert np.abs(store.array(CONFIDENCE)[...] - 255.0 * expected.max(axis=-1)).max() <= 0.8
        assert np.bincount(classes.ravel(), minlength=4).max() < 0.97 * classes.size
    else:
        network, card = saving.load_model(model)
        reference = predict_maps(Predictor(network, card), sem / np.float32(255), tile=(64, 64), halo=16, flips=8)
        assert np.abs(np.moveaxis(store.array(PROBABILITIES)[...], 0, -1) - 255.0 * reference).max() <= 0.8
    np.testing.assert_array_equal(store.array(GREY)[...], sem)
    assert times.tiles == len(plan.grid) and times.pixels == sem.size and times.network > 0


@pytest.mark.parametrize("blend", ["linear", "gaussian"])
def test_blended_blocks_equal_blending_of_the_whole(tmp_path, model, sem, blend):
    plan = plan_of(tmp_path, model, sem, blend=blend, probabilities=True, halo=(8, 8))
    MapEngine(plan).run(plan.blocks())
    network, card = saving.load_model(model)
    expected = predict_maps(Predictor(network, card), sem / np.float32(255), tile=(64, 64), halo=8, blend=blend)
    found = np.moveaxis(MapStore(plan.store).array(PROBABILITIES)[...], 0, -1)
    assert np.abs(found - 255.0 * expected).max() <= 0.8
    audit = audit_seams(MapStore(plan.store).array(CLASSES), plan.grid, multiple_of=4)
    assert audit.seam_pairs > 0 and audit.recomputed_pixels == 0


def test_seam_audit_passes_wide_halos_and_finds_narrow_ones(tmp_path, model, sem):
    reports = {}
    for halo in (16, 0):
        plan = plan_of(tmp_path / str(halo), model, sem, halo=(halo, halo), tile=(64, 64) if halo else (32, 32))
        engine = MapEngine(plan)
        engine.run(plan.blocks())
        reports[halo] = audit_seams(MapStore(plan.store).array(CLASSES), plan.grid, predict_at=engine.predict_at,
                                    multiple_of=4)  # fmt: skip
    assert reports[16].passed and reports[16].recomputed_pixels > 1000 and reports[16].recomputed_differences == 0
    assert not reports[0].passed
    cut = np.zeros((300, 300), np.uint8)
    cut[100:, :150] = 1
    cut[:100, 150:] = 2
    from keras_microseg.tiling import TileGrid

    assert audit_seams(cut, TileGrid.cover((300, 300), 50, 0)).z > 4  # borders lie on the seams at 100 and 150


def test_blocks_alone_in_any_order_give_the_same_bytes(tmp_path, model, sem):
    one, other = plan_of(tmp_path / "one", model, sem), plan_of(tmp_path / "other", model, sem)
    MapEngine(one).run(one.blocks())
    engine = MapEngine(other)
    for shard in (3, 1, 2):
        engine.run(list(split_shards(other.blocks(), (shard, 3)))[::-1])
    np.testing.assert_array_equal(MapStore(one.store).array(CLASSES)[...], MapStore(other.store).array(CLASSES)[...])
    assert {r["status"] for r in Ledger(other.ledger, other.key).records().values()} == {"done"}
    assert len(Ledger(other.ledger, other.key).records()) == len(other.blocks())


class Damaged(LazyArray):
    """An array with a corner that cannot be read, or only at the second try."""

    def __init__(self, array, heals=False):
        self.array, self.shape, self.dtype, self.heals = array, array.shape, array.dtype, heals

    def read_block(self, block):
        if block[0].start < 20 and block[1].start < 20:
            if self.heals:
                self.heals = False
            else:
                raise FileError("sem.zarr", "chunk 0/0 is damaged.")
            raise OSError("not yet")
        return self.array[block]


def test_what_cannot_be_read_is_unknown_and_the_rest_intact(tmp_path, model, sem, monkeypatch):
    monkeypatch.setattr("keras_microseg.inference.map_engine._PAUSE", 0)
    good = plan_of(tmp_path / "good", model, sem)
    MapEngine(good).run(good.blocks())
    expected = MapStore(good.store).array(CLASSES)[...]
    bad = plan_of(tmp_path / "bad", model, Damaged(sem))
    MapEngine(bad).run(bad.blocks())
    found, records = MapStore(bad.store).array(CLASSES)[...], Ledger(bad.ledger, bad.key).records()
    assert [b for b, r in records.items() if r["status"] == "failed"] == [(0, 0)] and "0/0" in records[0, 0]["problem"]
    unknown = found == 255
    assert unknown[:20, :20].all() and 0 < unknown.sum() < 100 * 100
    np.testing.assert_array_equal(found[~unknown], expected[~unknown])


def test_reading_is_tried_again(tmp_path, model, sem, monkeypatch):
    monkeypatch.setattr("keras_microseg.inference.map_engine._PAUSE", 0)

    class Late(Damaged):
        def read_block(self, block):
            if self.heals:
                self.heals = False
                raise OSError("not yet")
            return self.array[block]

    plan = plan_of(tmp_path, model, Late(sem, heals=True))
    MapEngine(plan).run(plan.blocks())
    assert {r["status"] for r in Ledger(plan.ledger, plan.key).records().values()} == {"done"}


def test_a_full_disk_stops_with_a_message_and_the_run_goes_on_later(tmp_path, model, sem, monkeypatch):
    plan = plan_of(tmp_path, model, sem)
    engine, append, count = MapEngine(plan), Ledger.append, []

    def full(self, block, **facts):
        count.append(block)
        if len(count) == 3:
            with io.write_errors(self.folder):
                raise OSError(28, "No space left on device")
        append(self, block, **facts)

    monkeypatch.setattr(Ledger, "append", full)
    with pytest.raises(FileError, match="disk is full"):
        engine.run(plan.blocks())
    assert not [t for t in threading.enumerate() if "_read" in t.name or "_write" in t.name]
    monkeypatch.setattr(Ledger, "append", append)
    done = Ledger(plan.ledger, plan.key).records()
    assert len(done) == 2
    engine.run([b for b in plan.blocks() if b not in done])
    good = plan_of(tmp_path / "good", model, sem)
    MapEngine(good).run(good.blocks())
    np.testing.assert_array_equal(MapStore(plan.store).array(CLASSES)[...], MapStore(good.store).array(CLASSES)[...])


def test_a_tile_larger_than_the_image(tmp_path, model, sem):
    small = sem[:50, :37]
    plan = plan_of(tmp_path, model, small, tile=(256, 256), block=1)
    MapEngine(plan).run(plan.blocks())
    assert MapStore(plan.store).array(CLASSES)[...].shape == (50, 37)
    assert (MapStore(plan.store).array(CLASSES)[...] < 4).all()


def test_ledger_refuses_another_run_and_forgets_torn_lines(tmp_path):
    ledger = Ledger(tmp_path, {"tile": 64, "model": {"hash": "a"}})
    ledger.append((0, 0), status="done")
    ledger.append((0, 1), status="failed", problem="chunk")
    ledger.close()
    (log,) = tmp_path.glob("*.jsonl")
    with open(log, "ab") as file:
        file.write(b'{"block": [5, 5], "stat')
    again = Ledger(tmp_path, {"tile": 64, "model": {"hash": "a"}})
    assert set(again.records()) == {(0, 0), (0, 1)}
    again.append((0, 1), status="done")
    again.append((0, 0), status="failed")
    assert {r["status"] for r in again.records().values()} == {"done"}
    with pytest.raises(FileError, match=r"another run \(model.hash: 'a' there, 'b' now\)"):
        Ledger(tmp_path, {"tile": 64, "model": {"hash": "b"}})
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(FileError, match="cannot be read"):
        Ledger(tmp_path, {})


def test_metadata_of_the_card_is_what_the_reader_finds(tmp_path, model, sem):
    from keras_microseg.workflows.mineral_predict import card_palette

    plan = plan_of(tmp_path, model, sem)
    MapEngine(plan).run(plan.blocks())
    store = MapStore(plan.store, "r+")
    list(store.build_levels(CLASSES))
    list(store.build_levels(GREY))
    store.describe(card_palette(CARD), PixelSize.parse("0.5um"), {"a": 1})
    opened = io.open_image(plan.store)
    assert opened.axes == "YX" and opened.pixel_size.size == (0.5, 0.5) and opened.pixel_size.unit == "um"
    labels = json.loads((tmp_path / "m.zarr" / "labels" / "classes" / ".zattrs").read_text())
    assert {"label-value": 2, "rgba": [0, 255, 255, 255]} in labels["image-label"]["colors"]
    assert {"label-value": 3, "name": "clay"} in labels["image-label"]["properties"]
    with pytest.raises(UserError):
        MapPlan(**{**plan.__dict__, "tile": (66, 66)}).grid  # noqa: B018
