import dataclasses
import errno
import json
import os

import pytest

from keras_microseg.checks import FileError, UserError
from keras_microseg.workflows import steps
from keras_microseg.workflows.steps import RunFolder, Step, run_steps


@dataclasses.dataclass(frozen=True)
class Settings:
    factor: int = 2
    note: str = dataclasses.field(default="", metadata={"lasting": False})


def double(folder: RunFolder) -> None:
    inputs = {path.stem: path for path in sorted((folder.path.parent / "in").iterdir())}

    def work(name, path):
        number = int(path.read_text())
        if number < 0:
            raise UserError(f"{path}: negative.")
        target = folder.file("numbers", f"{name}.txt")
        target.write_text(str(number * folder.settings.factor))
        return {"number": number}, [target]

    folder.for_each("double", inputs, work)


def fail(folder: RunFolder) -> None:
    raise UserError("cannot go on.")


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "in").mkdir()
    for name, number in (("a", 1), ("b", -1), ("c", 3)):
        (tmp_path / "in" / f"{name}.txt").write_text(str(number))
    return tmp_path


def test_a_bad_item_is_recorded_and_the_others_are_done(inputs):
    folder = run_steps(RunFolder(inputs / "out", Settings(), command="double"), [Step("double", double)])
    assert (inputs / "out/numbers/c.txt").read_text() == "6"
    assert [failure.item for failure in folder.failures()] == [str(inputs / "in" / "b.txt")]
    manifest = json.loads((inputs / "out/manifest.json").read_text())
    assert manifest["steps"]["double"]["items"]["a"]["outputs"] == ["numbers/a.txt"]
    assert json.loads((inputs / "out/settings.json").read_text())["factor"] == 2


def test_resume_does_only_what_is_missing_or_changed(inputs):
    def run(**options):
        return run_steps(RunFolder(inputs / "out", Settings(), command="d", **options), [Step("double", double)])

    run()
    kept = (inputs / "out/numbers/a.txt").stat().st_mtime_ns
    (inputs / "in/b.txt").write_text("20")
    (inputs / "out/numbers/c.txt").unlink()
    folder = run(resume=True)
    assert not folder.failures()
    assert (inputs / "out/numbers/a.txt").stat().st_mtime_ns == kept
    assert [(inputs / f"out/numbers/{name}.txt").read_text() for name in "bc"] == ["40", "6"]


def test_interrupted_run_goes_on(inputs):
    calls = []

    def interrupted(folder):
        def work(name, path):
            calls.append(name)
            if len(calls) == 2:
                raise KeyboardInterrupt
            target = folder.file(f"{name}.txt")
            target.write_text("x")
            return {}, [target]

        folder.for_each("work", {path.stem: path for path in sorted((inputs / "in").iterdir())}, work)

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("work", interrupted)])
    run_steps(RunFolder(inputs / "out", Settings(), command="d", resume=True), [Step("work", interrupted)])
    assert calls == ["a", "b", "b", "c"]


def test_used_folder_is_refused_or_replaced(inputs):
    run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("double", double)])
    with pytest.raises(FileError, match="--resume"):
        RunFolder(inputs / "out", Settings(), command="d")
    with pytest.raises(FileError, match="factor=2 -> 3"):
        RunFolder(inputs / "out", Settings(3), command="d", resume=True)
    RunFolder(inputs / "out", Settings(note="other"), command="d", resume=True)  # decides about no result
    (inputs / "out/mine.txt").write_text("keep")
    RunFolder(inputs / "out", Settings(3), command="d", overwrite=True)
    assert sorted(path.name for path in (inputs / "out").iterdir() if path.is_file()) == [
        "manifest.json", "mine.txt", "settings.json",
    ]  # fmt: skip


def test_foreign_files_are_not_replaced(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    folder = RunFolder(tmp_path, Settings(), command="d")
    with pytest.raises(FileError, match="not from a run"):
        folder.file("report.html")


def test_manifest_cannot_point_outside_the_folder(inputs):
    run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("double", double)])
    manifest = json.loads((inputs / "out/manifest.json").read_text())
    manifest["outputs"].append("../in/a.txt")
    (inputs / "out/manifest.json").write_text(json.dumps(manifest))
    RunFolder(inputs / "out", Settings(), command="d", overwrite=True)
    assert (inputs / "in/a.txt").exists()


def test_full_disk_stops_the_batch(inputs):
    def full(folder):
        def work(name, path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        folder.for_each("work", {"a": inputs / "in/a.txt"}, work)

    with pytest.raises(FileError, match="Free some space"):
        run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("work", full)])


def test_unforeseen_errors_keep_their_traceback(inputs):
    def broken(folder):
        folder.for_each("work", {"a": inputs / "in/a.txt"}, lambda name, path: 1 / 0)

    folder = run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("work", broken)])
    (failure,) = folder.failures()
    assert "ZeroDivisionError" in failure.message and "Traceback" in failure.detail


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileError, match="is a file, not a folder"):
        RunFolder(tmp_path / "out", Settings(), command="d")


def test_steps_in_processes_of_their_own(inputs):
    folder = RunFolder(inputs / "out", Settings(), command="d")
    run_steps(folder, [Step("double", double)], separate=True)
    assert (inputs / "out/numbers/c.txt").read_text() == "6" and len(folder.failures()) == 1
    with pytest.raises(UserError, match="cannot go on"):
        run_steps(folder, [Step("fail", fail)], separate=True)


def test_names_are_distinct_and_safe():
    paths = ["x/a.tif", "x/a.png", "x/b.tif", "y/B.tif", 'x/c:"d?.tif']
    names = list(steps.item_names(paths))
    assert names == ["a_tif", "a_png", "b_tif", "B_tif_2", "c__d_"]


def test_json_holds_any_value(tmp_path):
    import numpy as np

    steps.write_json(tmp_path / "a.json", {"a": np.float32(1.5), "b": float("nan"), "c": Settings(), "d": tmp_path})
    found = steps.read_json(tmp_path / "a.json")
    assert found["a"] == 1.5 and found["b"] is None and found["c"]["factor"] == 2
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(FileError, match="cannot be read as JSON"):
        steps.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("made", [True, False])
def test_a_run_that_fails_before_any_result_leaves_the_folder_as_it_was(tmp_path, made):
    out = tmp_path / "out"
    if made:
        out.mkdir()
        (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="cannot go on"):
        run_steps(RunFolder(out, Settings(), command="d"), [Step("fail", fail)])
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "mine.txt"] if made else [])


def test_a_run_that_fails_after_results_keeps_them(inputs):
    with pytest.raises(UserError, match="cannot go on"):
        run_steps(RunFolder(inputs / "out", Settings(), command="d"), [Step("double", double), Step("fail", fail)])
    assert (inputs / "out/numbers/a.txt").exists() and (inputs / "out/manifest.json").exists()


def test_a_directory_goes_with_the_run(inputs):
    def train(folder):
        (folder.directory("training") / "weights.txt").write_text("1")

    def run(**options):
        return run_steps(RunFolder(inputs / "out", Settings(), command="d", **options), [Step("train", train)])

    run()
    run(resume=True)
    assert (inputs / "out/training/weights.txt").exists()
    (inputs / "out/training/old.txt").write_text("")
    run(overwrite=True)
    assert not (inputs / "out/training/old.txt").exists()


def test_a_changed_setting_inside_a_part_is_named(inputs):
    @dataclasses.dataclass(frozen=True)
    class Whole:
        part: Settings = Settings()

    run_steps(RunFolder(inputs / "out", Whole(), command="d"), [])
    with pytest.raises(FileError, match=r"part\.factor=2 -> 5\)"):
        RunFolder(inputs / "out", Whole(Settings(5)), command="d", resume=True)
