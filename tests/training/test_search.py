import json

import numpy as np
import pytest

from keras_microseg.checks import MissingPackageError, UserError
from keras_microseg.training import search as searching
from keras_microseg.training.search import Choice, Range, read_search, search

SPACE = {
    "x": Range(-2, 2),
    "rate": Range(1e-4, 1e-1, log=True),
    "kind": Choice(("a", [1, 2])),
    "n": Range(1, 4, integer=True),
}


def parabola(values, number, report):
    assert values["kind"] in ("a", [1, 2]) and isinstance(values["n"], int) and 1e-4 <= values["rate"] <= 1e-1
    score = -((values["x"] - 1) ** 2)
    for epoch in range(1, 9):
        report(epoch, score * (1 + 1 / epoch))
    return score


@pytest.fixture(autouse=True)
def optuna():
    return pytest.importorskip("optuna")


def test_finds_the_summit_prunes_and_goes_on(tmp_path):
    first = search(parabola, SPACE, tmp_path, num_trials=12, grace=2, first={"x": 1.9})
    assert len(first.table) == 12 and first.table.loc[0, "x"] == 1.9
    assert set(first.table["state"]) == {"complete", "pruned"}
    later = search(parabola, SPACE, tmp_path, num_trials=25, grace=2)
    assert len(later.table) == 25
    assert later.table.loc[:11, "x"].tolist() == first.table["x"].tolist()
    assert later.score >= first.score and abs(later.best["x"] - 1) < 0.5
    again = read_search(tmp_path)
    assert again.best == later.best and again.curves[0][0] == (1, pytest.approx(-0.81 * 2))


def test_one_worker_is_repeatable(tmp_path):
    tables = [search(parabola, SPACE, tmp_path / str(i), num_trials=6, seed=3).table["x"] for i in range(2)]
    np.testing.assert_array_equal(*tables)


def test_a_killed_trial_is_tried_again(tmp_path):
    def killed(values, number, report):
        if number == 2:
            raise KeyboardInterrupt
        return parabola(values, number, report)

    with pytest.raises(KeyboardInterrupt):
        search(killed, SPACE, tmp_path, num_trials=4, pruner="none")
    result = search(parabola, SPACE, tmp_path, num_trials=4, pruner="none")
    assert result.table["state"].tolist() == ["complete", "complete", "failed", "complete", "complete"]
    assert result.table.loc[3, "x"] == result.table.loc[2, "x"]


def test_failing_trials_are_recorded_and_many_end_the_search(tmp_path):
    def fails(values, number, report):
        raise UserError("The loss is nan")

    with pytest.raises(UserError, match="Three trials in a row.*nan"):
        search(fails, SPACE, tmp_path, num_trials=5)
    with pytest.raises(UserError, match="No trial.*completed.*nan"):
        read_search(tmp_path)


def test_other_ranges_in_the_same_folder_are_refused(tmp_path):
    search(parabola, SPACE, tmp_path, num_trials=1)
    with pytest.raises(UserError, match="other ranges"):
        search(parabola, SPACE | {"x": Range(0, 1)}, tmp_path, num_trials=2)
    with pytest.raises(UserError, match="holds no search"):
        read_search(tmp_path / "none")


def test_dask_workers_share_a_search(tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        result = search(parabola, SPACE, tmp_path, num_trials=8, pruner="none", workers=2, client=client)
    assert 8 <= len(result.table) <= 9  # two workers may begin the last one together


@pytest.mark.slow
def test_processes_share_a_search(tmp_path):
    result = search(parabola, SPACE, tmp_path, num_trials=8, pruner="none", workers=2)
    assert 8 <= len(result.table) <= 9


def test_without_optuna_the_install_command_is_given(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"keras_microseg\[search\]"):
        search(parabola, SPACE, tmp_path, num_trials=1)


def test_arguments_are_checked(tmp_path):
    for wrong in ({"num_trials": 0}, {"num_trials": 1, "pruner": "x"}, {"num_trials": 1, "direction": "up"}):
        with pytest.raises(UserError):
            search(parabola, SPACE, tmp_path, **wrong)
    with pytest.raises(UserError, match="high"):
        Range(2, 1)
    assert json.dumps(searching._Plan(SPACE, "", 1, "", "maximize", "none", 1, 0, None).describe())
