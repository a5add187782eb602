"""Files and folders: which images a user means, in which order, and writing that leaves nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_microseg.checks import FileError, UserError
from keras_microseg.io import sources

SUFFIXES = (
    ".tif", ".tiff", ".btf", ".tf8", ".tf2", ".png", ".jpg", ".jpeg", ".bmp", ".gif",
    ".h5", ".hdf5", ".hdf", ".zarr", ".npy",
)  # fmt: skip
"""Endings that `find_images` takes from a folder. `open_image` looks at the content instead."""

_WRITE_PROBLEMS = {
    errno.ENOSPC: ("the disk is full.", "Free some space or choose another output folder."),
    errno.EDQUOT: ("the disk quota is used up.", "Free some space or choose another output folder."),
    errno.EFBIG: ("the file is larger than the disk or system allows.", "Choose another output folder."),
    errno.EACCES: ("no permission to write.", "Close programs that use it, or choose another output folder."),
    errno.EPERM: ("no permission to write.", "Close programs that use it, or choose another output folder."),
    errno.EROFS: ("the disk is read-only.", "Choose another output folder."),
    errno.ENOTDIR: ("a part of its folder's path is a file.", "Choose another output folder."),
    errno.EISDIR: ("it is a folder.", "Choose another file name."),
    errno.EEXIST: ("its folder cannot be made: a file has that name.", "Choose another output folder."),
    errno.ENAMETOOLONG: ("the name is too long.", "Choose a shorter one."),
}


def natural_key(path: str | os.PathLike) -> tuple:
    """Sort key that counts: `img2` before `img10`; upper and lower case together."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts), str(path)


def is_zarr(path: Path) -> bool:
    """True for a folder that is itself a Zarr array or group."""
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def find_images(paths: str | os.PathLike | Iterable[str | os.PathLike], *, recursive: bool = False) -> list[Path]:
    """The image files a user means, each once, in natural order within every folder.

    Args:
        paths: a file, a folder, a pattern such as `scans/*.tif`, or several of them. Files given by name are taken
            whatever their ending; from folders those with an ending in `SUFFIXES` that are not hidden.
        recursive: look into sub-folders too.

    Raises:
        FileError: a name that does not exist, or a folder or pattern without any image.
    """
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: dict[Path, None] = {}
    for given in listed:
        path = Path(given)
        if path.is_file() or is_zarr(path):
            found[path] = None
        elif path.is_dir():
            images = _images_in(path, recursive)
            if not images:
                deeper = "" if recursive else " Sub-folders are not searched."
                raise FileError(path, f"no image in this folder.{deeper}", f"Looked for {', '.join(SUFFIXES)}.")
            found.update(dict.fromkeys(images))
        elif any(letter in str(given) for letter in "*?["):
            folder = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            images = sorted((p for p in folder.glob(pattern) if p.is_file() or is_zarr(p)), key=natural_key)
            if not images:
                raise FileError(path, "no file matches this pattern.", "Check the folder and the spelling.")
            found.update(dict.fromkeys(images))
        else:
            raise FileError(path, "does not exist.", "Check the path and the spelling.")
    if not found:
        raise UserError("No image was given. Name files, folders or a pattern such as 'scans/*.tif'.")
    return list(found)


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=natural_key)
    except OSError as error:
        raise FileError(folder, f"the folder cannot be read ({error.strerror}).", "Check its permissions.") from error
    images = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if (entry.is_file() and entry.suffix.lower() in SUFFIXES) or is_zarr(entry):
            images.append(entry)
        elif recursive and entry.is_dir():
            images.extend(_images_in(entry, recursive))
    return images


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there becomes `path` on success and is removed otherwise.

    The temporary name ends like `path`, so writers that choose a format by ending still do. A folder (Zarr) works too.
    Missing parent folders are made. A reader of `path` sees the old file or the whole new one, never a part.

    Raises:
        FileError: the folder is not writable, the disk is full, or another system error while writing.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if not temporary.exists():
                raise FileError(path, "nothing was written.")
            if path.is_dir() and not path.is_symlink():
                if not temporary.is_dir() or not (is_zarr(path) or not any(path.iterdir())):
                    raise FileError(path, "it is a folder.", "Choose another file name.")
                shutil.rmtree(path)
            sources.release(path)
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn a system error while writing `path` into a `FileError` that says what to do.

    Errors that name another existing file (one that was being read) pass unchanged.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if isinstance(error.filename, (str, os.PathLike)):
            other = Path(error.filename)
            if other.is_file() and other.parent != Path(path).parent and other not in Path(path).parents:
                raise
        text = str(error)
        code = error.errno
        if code is None and re.search(r"\d+ requested and \d+ written", text):  # numpy.tofile on a full disk
            code = errno.ENOSPC
        problem, remedy = _WRITE_PROBLEMS.get(
            code, (f"cannot be written ({error.strerror or text}).", "Choose another output folder.")
        )
        raise FileError(path, problem, remedy) from error
