"""What went wrong in a run, in words for the user: failed items, full disks, interruptions."""

from __future__ import annotations

import dataclasses
import errno
import os
import traceback
from pathlib import Path

from keras_microseg.checks import FileError, UserError

_FULL_DISK = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C during a run; what was finished is on disk and `--resume` goes on."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An item that could not be processed.

    Attributes:
        item: file or item name, as the user knows it.
        step: name of the step.
        message: what is wrong and what to do.
        detail: traceback when the error was not foreseen, else empty.
    """

    item: str
    step: str
    message: str
    detail: str = ""


def describe(error: Exception, path: str | os.PathLike, step: str = "") -> Failure:
    """Turn an exception into a `Failure` whose message names the file."""
    name = str(path)
    if isinstance(error, UserError):
        text = str(error)
        return Failure(name, step, text if Path(name).name in text else f"{name}: {text}")
    if isinstance(error, MemoryError):
        message = f"{name}: not enough memory. Close other programs, or cut the image into parts."
    elif isinstance(error, OSError):
        message = f"{name}: {error.strerror or error}. Check that the file is complete and may be read."
    else:
        message = f"{name}: unexpected {type(error).__name__}: {error}. Please report it; details are in manifest.json."
    return Failure(name, step, message, "".join(traceback.format_exception(error)))


def is_disk_full(error: BaseException | None) -> bool:
    """True when `error`, or an error behind it, says that the disk takes no more data."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_error(path: Path, error: BaseException) -> FileError:
    """The message for a disk that takes no more data."""
    reason = getattr(error, "strerror", None) or str(error)
    return FileError(path, f"cannot be written: {reason}.", "Free some space, then go on with --resume.")
