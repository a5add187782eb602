"""The command line as users call it: options, messages, exit codes, bad input."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from keras_microseg import io
from keras_microseg.cli import app
from keras_microseg.image import PixelSize

COMMANDS = ("segment", "measure", "simulate", "train", "evaluate", "demo", "doctor")
ROOT = Path(__file__).resolve().parent.parent


def call(*arguments) -> object:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def program(*arguments, code: str | None = None) -> subprocess.CompletedProcess:
    """The real program, or `code`, in a process of its own."""
    command = ["-c", code] if code else ["-m", "keras_microseg", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, encoding="utf-8", env=environment, timeout=300
    )


@pytest.fixture
def images(tmp_path):
    yy, xx = np.indices((100, 120))
    for name in ("a", "b"):
        image = np.full((100, 120), 30, np.uint8)
        for y, x in ((25, 25), (25, 80), (70, 50)):
            image[(yy - y) ** 2 + (xx - x) ** 2 < 81] = 190
        io.write_image(tmp_path / "in" / f"{name}.tif", image, axes="YX", pixel_size=PixelSize.parse("2 nm"))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and f"keras-microseg {command}" in result.output


def test_help_and_version():
    result = call("--help")
    assert result.exit_code == 0 and all(command in result.output for command in COMMANDS)
    assert "keras_microseg 0." in call("--version").output


def test_segment_measure_evaluate(images):
    result = call("segment", images / "in", "--out", images / "out", "--method", "classical")
    assert result.exit_code == 0, result.output
    assert "6 particles in 2 images." in result.output and "report.html" in result.output
    assert "nm" in result.output and "\x1b" not in result.output
    measured = call("measure", images / "out" / "labels", "--out", images / "out2", "--unit", "um")
    assert measured.exit_code == 0 and "6 particles" in measured.output and "\u00b5m" in measured.output
    scored = call("evaluate", images / "out", images / "out" / "labels", "--out", images / "scores.json")
    assert scored.exit_code == 0 and "AP50:95" in scored.output and (images / "scores.json").is_file()


def test_corrupt_file_among_good_ones(images):
    (images / "in" / "bad.tif").write_text("not an image")
    result = call("segment", images / "in", "--out", images / "out", "--method", "classical")
    assert result.exit_code == 1 and "1 failed:" in result.output and "bad.tif" in result.output
    assert "6 particles in 2 images." in result.output and (images / "out" / "report.html").is_file()
    assert "Traceback" not in result.output
    again = call("segment", images / "in", "--out", images / "out", "--method", "classical")
    assert again.exit_code == 1 and "--resume" in again.output
    (images / "in" / "bad.tif").unlink()
    resumed = call("segment", images / "in", "--out", images / "out", "--method", "classical", "--resume")
    assert resumed.exit_code == 0, resumed.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["segment", "{empty}", "--out", "{out}", "--method", "classical"], "no image in this folder"),
        (["segment", "{empty}/x.tif", "--out", "{out}", "--method", "classical"], "does not exist"),
        (["segment", "{in}", "--out", "{in}/a.tif", "--method", "classical"], "not a folder"),
        (["segment", "{in}", "--out", "{in}/a.tif/sub", "--method", "classical"], "--out"),
        (["segment", "{in}", "--out", "{out}", "--method", "magic"], "`method` must be one of"),
        (["segment", "{in}", "--out", "{out}", "--method", "classical", "--pixel-size", "1.2"], "1.2nm"),
        (["segment", "{in}", "--out", "{out}", "--method", "classical", "--info-bar", "x"], "info_bar"),
        (["measure", "{in}/a.tif", "--out", "{out}", "--images", "{empty}"], "no image in this folder"),
        (["evaluate", "{in}", "{empty}"], "no image in this folder"),
        (["evaluate", "{in}", "{in}", "--out", "scores.txt"], ".json"),
        (["simulate", "--out", "{out}", "--count", "0"], "`count`"),
        (["simulate", "--out", "{out}", "--preset", "laser"], "`preset` must be one of"),
    ],
)
def test_wrong_input_is_told_without_traceback(images, arguments, message):
    (images / "empty").mkdir()
    places = {"{in}": images / "in", "{out}": images / "out", "{empty}": images / "empty"}
    filled = []
    for argument in arguments:
        for key, path in places.items():
            argument = argument.replace(key, str(path))
        filled.append(argument)
    result = call(*filled)
    assert result.exit_code == 1 and message in result.output.replace("\n", " "), result.output
    assert "Traceback" not in result.output


def test_wrong_usage_has_exit_code_2(tmp_path):
    assert call("segment", tmp_path).exit_code == 2
    assert call("simulate", "--out", tmp_path, "--size", "axb").exit_code == 2
    assert call("nonsense").exit_code == 2


def test_no_particle_and_unknown_pixel_size_are_notes(tmp_path):
    io.write_image(tmp_path / "flat.png", np.full((80, 80), 9, np.uint8), axes="YX")
    result = call("segment", tmp_path / "flat.png", "--out", tmp_path / "out", "--method", "classical")
    assert result.exit_code == 0, result.output
    assert "No particle was found" in result.output and "pixel size is unknown" in result.output


def test_simulate_writes_pairs(tmp_path):
    result = call("simulate", "--count", 1, "--out", tmp_path / "d", "--size", "64x96", "--preset", "tem")
    assert result.exit_code == 0, result.output
    assert io.read_labels(tmp_path / "d/labels/sim_0000.tif").shape == (64, 96)


def test_program_starts_fast_and_without_keras():
    code = (
        "import sys, time; start = time.process_time(); from typer.testing import CliRunner; "
        "from keras_microseg.cli import app; result = CliRunner().invoke(app, ['--help']); "
        "heavy = {'keras', 'jax', 'torch', 'tensorflow', 'matplotlib', 'pandas', 'skimage'} & set(sys.modules); "
        "print(result.exit_code, sorted(heavy), time.process_time() - start)"
    )
    done = program(code=code)
    exit_code, heavy, seconds = done.stdout.split()
    assert exit_code == "0" and heavy == "[]", done.stdout + done.stderr
    assert float(seconds) < 2.0  # CPU time; well under a second on an idle machine


def test_classical_path_never_imports_keras(images):
    code = (
        "import sys; from keras_microseg.cli import app; "
        f"arguments = ['segment', {str(images / 'in')!r}, '--out', {str(images / 'out')!r}, '--method', 'classical']; "
        "app(arguments, standalone_mode=False); "
        "print('LOADED', sorted({'keras', 'jax', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = program(code=code)
    assert "LOADED []" in done.stdout, done.stdout + done.stderr


def test_program_exit_code_and_message(tmp_path):
    done = program("segment", tmp_path / "nothing.tif", "--out", tmp_path / "out", "--method", "classical")
    assert done.returncode == 1 and "nothing.tif: does not exist" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_is_clean(images):
    code = (
        "from keras_microseg.workflows import segment_images\n"
        "def stop(*arguments, **options):\n"
        "    raise KeyboardInterrupt\n"
        "segment_images.segment_file = stop\n"
        "import sys\n"
        f"sys.argv = ['k', 'segment', {str(images / 'in')!r}, '--out', {str(images / 'out')!r}]\n"
        "sys.argv += ['--method', 'classical']\n"
        "from keras_microseg.__main__ import main\n"
        "main()\n"
    )
    done = program(code=code)
    assert done.returncode == 130 and "--resume" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.network
def test_unknown_backend_and_damaged_model(images):
    done = program("segment", images / "in", "--out", images / "out", "--backend", "theano")
    assert done.returncode == 1 and "KERAS_BACKEND" in done.stderr
    (images / "m.keras").write_bytes(b"PK\x03\x04 damaged")
    done = program("segment", images / "in", "--out", images / "out", "--model", images / "m.keras")
    assert done.returncode == 1 and "m.keras" in done.stderr and "Traceback" not in done.stderr
    assert "Backend: " in done.stderr


class TestProgress:
    """Time left, on a terminal and elsewhere."""

    def test_time_left_of_long_items(self):
        from keras_microseg.cli.shared import TimeLeft

        now = [0.0]
        left = TimeLeft(2, clock=lambda: now[0])  # resumed: two epochs were done before
        left.update(2)
        assert left.words(12) == ""
        now[0] = 90.0  # longer than the half minute that rich looks back
        left.update(3)
        assert left.words(12) == "0:13:30 left"
        now[0] = 120.0  # the clock goes on within the next epoch
        assert left.words(12) == "0:13:00 left"
        now[0] = 1000.0  # it takes longer than the epoch before
        assert left.words(12) == "2:30:00 left"
        left.update(0)  # a second training under the same name
        assert left.words(12) == ""

    def test_lines_where_there_is_no_terminal(self, capsys, monkeypatch):
        from keras_microseg.cli import shared

        monkeypatch.setattr(shared, "_SECONDS_BETWEEN_LINES", 0.0)
        with shared.show_progress() as show:
            show("train", 0, 4, "epochs")
            show("train", 1.5, 4, "epochs, loss 0.5")
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "train 0/4, epochs"
        assert lines[1].startswith("train 1/4, epochs, loss 0.5, 0:00:00 left")

    def test_quick_runs_print_no_lines(self, capsys):
        from keras_microseg.cli import shared

        with shared.show_progress() as show:
            show("measure", 1, 4, "a.tif")
        assert capsys.readouterr().err == ""


@pytest.mark.network
class TestWrongModel:
    """A model of another task is refused by name, before anything is written."""

    @pytest.mark.parametrize(
        ("card", "command"),
        [
            ({"kind": "detector"}, "particles detect"),
            ({"ndim": 3, "outputs": ["foreground"]}, "volume predict"),
            ({"task": "mineral map", "outputs": ["pore", "quartz"]}, "mineral predict"),
            ({"frame_input": {}, "outputs": ["A1", "A2"]}, "filament run"),
            ({"outputs": ["foreground", "boundary", "distance"], "diameter": {}}, "segment"),
            ({"outputs": ["a", "b"]}, None),
        ],
    )
    def test_command_of_a_card(self, card, command):
        from keras_microseg.models.saving import command_for

        assert command_for(card) == command

    def test_particle_model_makes_no_class_map(self, tmp_path):
        from keras_microseg.inference.segmenter import DEFAULT_MODEL

        io.write_image(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), axes="YX")
        result = call("mineral", "predict", tmp_path / "a.tif", "--model", DEFAULT_MODEL, "--out", tmp_path / "out")
        assert result.exit_code == 1 and "one for `segment`" in result.output
        assert not (tmp_path / "out").exists()


class TestWrongVolumes:
    @pytest.mark.network
    def test_one_slice_is_no_volume(self, tmp_path):
        np.save(tmp_path / "one.npy", np.zeros((1, 32, 32), np.uint8))
        result = call("volume", "run", tmp_path / "one.npy", "--out", tmp_path / "out")
        assert result.exit_code == 1 and "is one slice, not a volume" in result.output
        result = call("particles", "link", tmp_path / "one.npy", "--out", tmp_path / "out")
        assert result.exit_code == 1 and "nothing to link" in result.output
        assert not (tmp_path / "out").exists()

    def test_measuring_that_cannot_begin_leaves_nothing(self, tmp_path):
        np.save(tmp_path / "labels.npy", np.ones((8, 8, 8), np.int32))
        np.save(tmp_path / "phases.npy", np.ones((4, 8, 8), np.uint8))
        result = call(
            "particles", "measure", tmp_path / "labels.npy", "--phases", tmp_path / "phases.npy", "--voxel-size", "1um",
            "--out", tmp_path / "out",
        )  # fmt: skip
        assert result.exit_code == 1 and "must be one volume" in result.output and not (tmp_path / "out").exists()

    def test_two_volumes_of_any_name_are_compared_by_volume(self, tmp_path):
        truth = np.zeros((24, 24, 24), np.int32)
        truth[2:22, 2:22, 2:22] = 1
        found = np.zeros_like(truth)
        found[2:12, 2:12, 2:12] = 1
        np.save(tmp_path / "mine.npy", found)
        np.save(tmp_path / "true.npy", truth)
        result = call("particles", "evaluate", tmp_path / "mine.npy", tmp_path / "true.npy")
        assert result.exit_code == 0
        scores = dict(line.split()[:2] for line in result.output.splitlines() if line.strip())
        assert float(scores["diameter_error"]) == pytest.approx(-0.5)  # half the edge, an eighth of the volume


def test_misspelt_settings_are_guessed():
    from keras_microseg.checks import UserError, check_names

    with pytest.raises(UserError, match="Did you mean epochs"):
        check_names(["epoch"], ["epochs", "tile"])
    with pytest.raises(UserError, match="There are epochs, tile"):
        check_names(["zzz"], ["epochs", "tile"])
    check_names(["tile"], ["epochs", "tile"])


@pytest.mark.network
def test_training_data_that_are_not_there(tmp_path):
    result = call("particles", "train", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == 1 and "does not exist" in result.output and not (tmp_path / "out").exists()
