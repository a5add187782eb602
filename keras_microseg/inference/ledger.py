"""Which blocks of a large job are done: files that only ever grow, one per process, so that nothing needs a lock.

A ledger is a folder: `job.json` says which job it belongs to, every process appends a line per finished block to a file
of its own. A line that a kill cut off does not count, so a block is either done or done again.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_microseg import io
from keras_microseg.checks import FileError

JOB = "job.json"
Block = tuple[int, int]


class Ledger:
    """The finished blocks of one job.

    Args:
        folder: of the ledger; made when missing.
        key: JSON values that decide about the result, nested dictionaries welcome.

    Raises:
        FileError: the folder belongs to another job; the message says what differs.
    """

    def __init__(self, folder: str | os.PathLike, key: Mapping[str, Any]):
        self.folder, self.key = Path(folder), json.loads(json.dumps(key))
        self._file: Any = None
        path = self.folder / JOB
        if path.is_file():
            check_same_job(path, self.key)
            return
        with io.atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.key, indent=1), encoding="utf-8")

    def records(self) -> dict[Block, dict[str, Any]]:
        """The last record of every block, over all processes; `status` is "done" or "failed".

        A block that one process failed and another did is done.
        """
        found: dict[Block, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last newline was cut off
                try:
                    record = json.loads(line)
                    block = (int(record["block"][0]), int(record["block"][1]))
                except (ValueError, KeyError, TypeError, IndexError):
                    continue
                if found.get(block, {}).get("status") != "done":
                    found[block] = record
        return found

    def append(self, block: Block, **facts: Any) -> None:
        """Note a block, after its own bytes are on disk."""
        if self._file is None:
            name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
            with io.write_errors(self.folder):
                self._file = open(self.folder / name, "ab", buffering=0)  # noqa: SIM115 - stays open while we work
        line = json.dumps({"block": [int(n) for n in block], **facts}) + "\n"
        with io.write_errors(self.folder):
            self._file.write(line.encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def check_same_job(path: Path, key: Mapping[str, Any]) -> None:
    """`FileError` with every difference unless the `job.json` at `path` holds `key`."""
    try:
        earlier = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read ({error}).", "Begin again with --overwrite.") from error
    asked = _flat(key)
    names = [name for name in {**earlier, **asked} if earlier.get(name) != asked.get(name)]
    if names:
        listed = "; ".join(f"{name}: {earlier.get(name)!r} there, {asked.get(name)!r} now" for name in names)
        raise FileError(
            path.parent,
            f"is the ledger of another run ({listed}).",
            "Repeat the settings of that run to go on with it, choose another folder, or use --overwrite.",
        )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return flat
