"""Runs named steps in order into one folder: resumable, one bad item never stops the others, nothing half-written.

A run folder holds, beside its results, `settings.json` (what was asked) and `manifest.json` (what was done: every
step, every item, its outputs). A run that was interrupted goes on from the manifest; items whose input file has not
changed and whose outputs are still there are left alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import __version__, io
from keras_microseg.checks import FileError, UserError
from keras_microseg.workflows.failures import Failure, InterruptedRun, describe, disk_full_error, is_disk_full

logger = logging.getLogger(__name__)

MANIFEST, SETTINGS = "manifest.json", "settings.json"
PACKAGES = ("numpy", "scipy", "scikit-image", "pandas", "tifffile", "imagecodecs", "pillow", "matplotlib", "keras")
FRAMEWORKS = ("jax", "torch", "tensorflow", "tensorflow-cpu")

Progress = Callable[[str, float, int, str], None]
"""Called as `progress(step, done, total, item)` before each item and once at the end; `done` is a fraction within an
epoch of a training."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One named part of a workflow.

    Attributes:
        name: a verb, shown in progress and manifest.
        run: function of the `RunFolder`; a module-level function when the step may run in a process of its own.
        always: run it even when the manifest says that it was done (cheap steps that sum up the others).
    """

    name: str
    run: Callable[[RunFolder], None]
    always: bool = False


def now() -> str:
    """The time with zone, to the second, ISO 8601."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses to dicts, arrays to lists, paths to text, NaN and inf to None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` (see `plain`) as UTF-8 JSON, all or nothing."""
    with io.atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike) -> Any:
    """Read JSON; `FileError` when it cannot be."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileError(path, f"cannot be read as JSON ({error}).", "Delete it and start the run again.") from error


def settings_hash(settings: Any) -> str:
    """Twelve hexadecimal digits that stand for `settings`, independent of the order of names."""
    text = json.dumps(_lasting(settings), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run_facts() -> dict[str, Any]:
    """What a result depends on beside its settings: versions, machine, backend (only when keras is loaded)."""
    versions = {}
    for package in (*PACKAGES, *FRAMEWORKS):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    keras = sys.modules.get("keras")
    backend = keras.backend.backend() if keras is not None else None
    return {
        "package": f"keras_microseg {__version__}",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": backend,
        "versions": versions,
    }


def item_names(paths: Iterable[str | os.PathLike]) -> dict[str, Path]:
    """A distinct, file-name-safe name for every path; the stem where that is enough.

    Names differ also on file systems that ignore case. `a.tif` and `a.png` become `a_tif` and `a_png`.
    """
    paths = [Path(path) for path in paths]
    stems = [_safe(path.name if path.is_dir() else path.stem) for path in paths]
    counts: dict[str, int] = {}
    for stem in stems:
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path, stem in zip(paths, stems, strict=True):
        name = stem if counts[stem.casefold()] == 1 else _safe(path.name.replace(".", "_"))
        number, candidate = 1, name
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate.casefold())
        names[candidate] = path
    return names


class RunFolder:
    """The folder of one run and its manifest.

    Args:
        path: folder, made when missing.
        settings: frozen dataclass of the workflow.
        command: name of the workflow, for the manifest.
        resume: go on with the run in `path`; it must have the same settings.
        overwrite: remove the files of the earlier run in `path` (those its manifest lists) and begin again.
        progress: see `Progress`.

    Raises:
        FileError: the folder cannot be written, holds another run, or holds files of ours that no manifest explains.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: Any,
        *,
        command: str,
        resume: bool = False,
        overwrite: bool = False,
        progress: Progress | None = None,
    ):
        self.path = Path(path)
        self.settings = settings
        self.command = command
        self.resume = resume
        self.progress = progress
        self._written = 0.0
        self._made = not self.path.exists()
        _make_writable(self.path)
        manifest_path = self.path / MANIFEST
        self.manifest: dict[str, Any] = {}
        if manifest_path.exists():
            if overwrite:
                self._remove_earlier()
            elif resume:
                self._take_up()
            else:
                ended = "finished" in read_json(manifest_path)
                raise FileError(
                    self.path,
                    "already holds the results of a run." if ended else "already holds a run that did not end.",
                    "Go on with it (--resume), replace it (--overwrite), or name another folder.",
                )
        self._new = not self.manifest
        if self._new:
            self.manifest = {"format": 1, "command": command, "started": now(), "outputs": [], "steps": {}}
        self._known = set(self.manifest["outputs"])
        self.manifest.update(settings_hash=settings_hash(settings), **run_facts())
        write_json(self.path / SETTINGS, {"command": command, **plain(settings)})
        self.save(force=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "progress": None}

    # Files

    def file(self, *parts: str) -> Path:
        """Path inside the folder; the folders above it are made, and the file is noted as ours."""
        path = self.path.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                path.parent, f"cannot be made ({error.strerror}).", "Choose another --out folder."
            ) from error
        name = "/".join(parts)
        if name not in self._known:
            if path.exists() and not self.resume:
                raise FileError(
                    path, "exists already and is not from a run of this program.", "Choose another --out folder."
                )
            self.manifest["outputs"].append(name)
            self._known.add(name)
        return path

    def directory(self, name: str) -> Path:
        """A folder inside the folder for a part that keeps its own record (a training); noted as ours as a whole."""
        path = self.path / name
        if f"{name}/" not in self._known:
            if path.exists() and not self.resume:
                raise FileError(
                    path, "exists already and is not from a run of this program.", "Choose another --out folder."
                )
            self.manifest["outputs"].append(f"{name}/")
            self._known.add(f"{name}/")
            self.save(force=True)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, *, force: bool = False) -> None:
        """Write the manifest, at most once a second unless `force`."""
        if force or time.monotonic() - self._written > 1.0:
            write_json(self.path / MANIFEST, self.manifest)
            self._written = time.monotonic()

    def abandon(self) -> None:
        """Remove what a run that began here and wrote no result has left, so that a second try finds no earlier run."""
        if (
            not self._new
            or self.manifest["outputs"]
            or any(item["status"] == "done" for step in self.manifest["steps"] for item in self.items(step).values())
        ):
            return
        for name in (SETTINGS, MANIFEST):
            (self.path / name).unlink(missing_ok=True)
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    # Items

    def items(self, step: str) -> dict[str, dict[str, Any]]:
        """What the manifest says about the items of `step`: name -> record."""
        return self.manifest["steps"].setdefault(step, {"status": "started", "items": {}}).setdefault("items", {})

    def facts(self, step: str) -> dict[str, dict[str, Any]]:
        """Facts of the items that `step` finished: name -> dict."""
        return {name: item["facts"] for name, item in self.items(step).items() if item["status"] == "done"}

    def for_each(
        self,
        step: str,
        inputs: Mapping[str, Path],
        work: Callable[[str, Path], tuple[dict[str, Any], Sequence[Path]]],
    ) -> None:
        """Call `work(name, path) -> (facts, files written)` for every item that is not done yet.

        A failing item is recorded and the others go on; only a disk that takes no more data stops the batch.
        """
        records = self.items(step)
        for gone in [name for name in records if name not in inputs]:
            del records[gone]
        try:
            for number, (name, path) in enumerate(inputs.items()):
                if self.progress:
                    self.progress(step, number, len(inputs), path.name)
                if self._is_done(records.get(name), path):
                    continue
                start = time.perf_counter()
                try:
                    facts, files = work(name, path)
                    record = {
                        "status": "done",
                        "facts": plain(facts),
                        "outputs": [file.relative_to(self.path).as_posix() for file in files],
                    }
                except Exception as error:  # one bad item must not end the batch; it is recorded and reported
                    if is_disk_full(error):
                        raise disk_full_error(self.path, error) from error
                    failure = describe(error, path, step)
                    record = {"status": "failed", "error": failure.message, "detail": failure.detail}
                    logger.warning("%s", failure.message)
                record.update(input=str(path), stamp=_stamp(path), seconds=round(time.perf_counter() - start, 3))
                records[name] = record
                self.save()
        finally:
            self.save(force=True)
        if self.progress:
            self.progress(step, len(inputs), len(inputs), "")

    def failures(self) -> list[Failure]:
        """All items that failed, in the order of steps and items."""
        return [
            Failure(item["input"], step, item["error"], item.get("detail", ""))
            for step, record in self.manifest["steps"].items()
            for item in record.get("items", {}).values()
            if item["status"] == "failed"
        ]

    def _is_done(self, record: dict[str, Any] | None, path: Path) -> bool:
        if not record or record["status"] != "done" or record["stamp"] != _stamp(path):
            return False
        return all((self.path / name).is_file() for name in record["outputs"])

    # Earlier runs

    def _take_up(self) -> None:
        self.manifest = read_json(self.path / MANIFEST)
        earlier = _flat(read_json(self.path / SETTINGS))
        asked = _flat({"command": self.command, **plain(_lasting(self.settings))})
        changed = [
            f"{key}={earlier.get(key)!r} -> {value!r}" for key, value in asked.items() if earlier.get(key) != value
        ]
        if changed:
            raise FileError(
                self.path,
                f"holds a run with other settings ({'; '.join(changed)}).",
                "Repeat the settings of that run to go on with it, or begin again with --overwrite.",
            )

    def _remove_earlier(self) -> None:
        earlier = read_json(self.path / MANIFEST)
        root = self.path.resolve()
        for name in [*earlier.get("outputs", []), SETTINGS, MANIFEST]:
            path = self.path / name
            if root in path.resolve().parents and path.exists():
                try:
                    if name.endswith("/") or io.is_zarr(path):
                        shutil.rmtree(path)
                    elif path.is_file():
                        path.unlink()
                except OSError as error:
                    raise FileError(
                        path, f"cannot be replaced ({error.strerror}).", "Close the program using it."
                    ) from error


def run_steps(folder: RunFolder, steps: Sequence[Step], *, separate: bool = False) -> RunFolder:
    """Run `steps` in order; a step that the manifest calls done is passed over.

    Args:
        folder: where the results go.
        steps: in order.
        separate: every step in a new process (`spawn`), which frees its accelerator memory when it ends.

    Raises:
        InterruptedRun: Ctrl-C; the folder can be resumed.
        UserError: a step cannot be done; a folder without any result so far is as it was before.
    """
    for step in steps:
        record = folder.manifest["steps"].setdefault(step.name, {"status": "started"})
        failed = any(item["status"] == "failed" for item in record.get("items", {}).values())
        if record["status"] == "done" and not step.always and not failed and "items" not in record:
            continue
        start = time.perf_counter()
        record["status"] = "started"
        folder.save(force=True)
        try:
            if separate:
                _run_apart(folder, step)
                record = folder.manifest["steps"][step.name]
            else:
                step.run(folder)
        except KeyboardInterrupt as stop:
            folder.save(force=True)
            raise InterruptedRun(f"Stopped during {step.name!r}. Go on with --resume and --out {folder.path}") from stop
        except UserError:
            folder.abandon()
            raise
        except OSError as error:
            if is_disk_full(error):
                raise disk_full_error(folder.path, error) from error
            raise
        record.update(status="done", seconds=round(time.perf_counter() - start, 3))
        folder.manifest["finished"] = now()
        folder.save(force=True)
        logger.info("%s: %.1f s, written to %s", step.name, record["seconds"], folder.path)
    return folder


def _run_apart(folder: RunFolder, step: Step) -> None:
    folder.save(force=True)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(folder, step))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join(10)
        raise
    folder.manifest = read_json(folder.path / MANIFEST)
    folder._known = set(folder.manifest["outputs"])
    if process.exitcode:
        message = folder.manifest["steps"].get(step.name, {}).pop("error", f"ended with exit code {process.exitcode}")
        raise UserError(f"Step {step.name!r}: {message}")


def _child(folder: RunFolder, step: Step) -> None:
    try:
        step.run(folder)
    except Exception as error:  # crosses a process border as text
        folder.manifest["steps"][step.name]["error"] = str(error)
        folder.save(force=True)
        raise SystemExit(1) from error
    folder.save(force=True)


def _lasting(settings: Any) -> dict[str, Any]:
    """Settings that decide about results: all but those marked `metadata={"lasting": False}`."""
    if not dataclasses.is_dataclass(settings):
        return plain(settings)
    return {
        field.name: plain(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.metadata.get("lasting", True)
    }


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings within settings as "part.name"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat


def _safe(name: str) -> str:
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip(" .") or "image"


def _stamp(path: Path) -> list[int]:
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]


def _make_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with io.atomic_path(path / SETTINGS) as temporary:
            temporary = Path(temporary)
            temporary.write_text("", encoding="utf-8")
            raise _Undo
    except _Undo:
        return
    except (FileExistsError, NotADirectoryError) as error:
        raise FileError(path, "is a file, not a folder.", "Name a folder with --out.") from error
    except OSError as error:
        raise FileError(path, f"cannot be written ({error.strerror}).", "Choose another --out folder.") from error


class _Undo(Exception):
    """Leaves `atomic_path` without keeping the file."""
