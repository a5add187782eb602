"""Notebooks run with tiny settings: their cells are taken as they are, but for installation and a cell of settings."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


def code_cells(name):
    cells = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_clean_and_choose_the_backend_first(name):
    notebook = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    assert "KERAS_BACKEND" in code_cells(name)[0]
    for source in code_cells(name):
        compile(re.sub(r"(?m)^(\s*)%.*$", r"\1pass", source), name, "exec")


def run(name, changes, monkeypatch, folder):
    """Execute the cells; `changes` replaces text in them, and each replacement must be found."""
    pytest.importorskip("IPython")
    monkeypatch.chdir(folder)
    source = "\n".join(cell for cell in code_cells(name)[1:] if "%pip" not in cell)
    for old, new in changes.items():
        assert old in source, old
        source = source.replace(old, new)
    scope = {}
    exec(compile(source, name, "exec"), scope)
    return scope


@pytest.mark.slow
def test_sem_particles(tmp_path, monkeypatch):
    import sys

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "workflows"))
    small = {k: v for k, v in __import__("small_sem_run").SMALL.items() if not k.startswith("outline")}
    scope = run(
        "sem_particles.ipynb",
        {
            "km.simulate(24, ": "km.simulate(5, ",
            "size=(384, 512)": "size=(128, 160)",
            "changes = {}": f"changes = {small}",
        },
        monkeypatch,
        tmp_path,
    )
    assert scope["outcome"].report_path.is_file() and len(scope["plan"].steps) == 8
    sys.modules.pop("small_sem_run", None)


@pytest.mark.slow
def test_filament_change(tmp_path, monkeypatch):
    scope = run(
        "filament_change.ipynb",
        {
            "COUNT, FRAMES, SIZE = 4, 12, 128": "COUNT, FRAMES, SIZE = 3, 6, 64",
            "CHANGES = {}": 'CHANGES = {"epochs": 1, "steps_per_epoch": 2, "network.features": 4}',
        },
        monkeypatch,
        tmp_path,
    )
    assert (scope["run"].path / "report.html").is_file() and not scope["run"].failures()


def test_mineral_maps(tmp_path, monkeypatch):
    scope = run(
        "mineral_maps.ipynb",
        {'method = "network"': 'method = "thresholds"', "size = 2000": "size = 1000"},
        monkeypatch,
        tmp_path,
    )
    assert (scope["folder"].path / "report.html").is_file()
    fractions = scope["fractions"]
    assert abs(fractions["share"]["pore"] - fractions["truth"]["pore"]) < 0.02


def test_particle_detachment(tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("Agg")
    scope = run(
        "particle_detachment.ipynb",
        {"SHAPE = (112, 224, 224)": "SHAPE = (60, 72, 76)", "DIAMETER = 36": "DIAMETER = 20"},
        monkeypatch,
        tmp_path,
    )
    assert (tmp_path / "RESULT" / "report.html").is_file()
    assert scope["scores"].recall > 0.95 and len(scope["inner"]) >= 4
    assert scope["error"].mean() < 0.05


@pytest.mark.slow
def test_particle_instances(tmp_path, monkeypatch):
    scope = run(
        "particle_instances.ipynb",
        {
            'CHANGES = {"minutes": 30}': 'CHANGES = {"epochs": 1, "steps_per_epoch": 1, "minutes": None, "tile": 64}',
            "SLICES, SIZE = 24, 320": "SLICES, SIZE = 3, 96",
        },
        monkeypatch,
        tmp_path,
    )
    assert (tmp_path / "STAGES" / "inspect.html").is_file() and not scope["results"].failures
