"""What a run leaves behind besides its model: `run.json`, the table of epochs, TensorBoard event files."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_microseg
from keras_microseg import io


class RunRecord:
    """`run.json`: settings, versions, seed, hashes of data and model, and how the run went.

    Args:
        path: the file; written at once and at every `update`.
        facts: JSON values known at the start.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, Any]):
        self.path = Path(path)
        self.facts = {"program": "keras_microseg", "versions": versions(), **facts, "started": _now()}
        self.update(status="running")

    def update(self, **facts: Any) -> None:
        """Add or replace facts and write the file."""
        self.facts |= facts | {"updated": _now()}
        with io.atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self.facts, indent=1, default=_plain), encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    name = keras.config.backend()
    package = {"tensorflow": ("tensorflow", "tensorflow-cpu")}.get(name, (name,))
    found = {
        "keras_microseg": keras_microseg.__version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
    }
    for candidate in ("numpy", *package):
        try:
            found[candidate] = importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"backend": name, "platform": platform.platform()}


def hash_model(model: keras.Model) -> str:
    """SHA-256 of names, shapes and values of all weights: equal for equal networks in equal states."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value))
        digest.update(f"{variable.name} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def hash_data(data: Any) -> str:
    """SHA-256 of a dataset: its own `fingerprint()` where it has one, else of its length and first batch."""
    if hasattr(data, "fingerprint"):
        return hashlib.sha256(str(data.fingerprint()).encode()).hexdigest()
    digest = hashlib.sha256(f"{type(data).__name__} {len(data)}".encode())
    for array in keras.tree.flatten(data[0]):
        if array is not None:
            array = np.ascontiguousarray(array)
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def write_history(path: str | Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write one CSV row per epoch; columns in order of first appearance."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with io.atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(history)


class EventFile:
    """Scalars for TensorBoard, in its own file format, without needing TensorBoard to write them.

    A file is a sequence of records (length, its checksum, data, its checksum); a record is an `Event` protocol buffer.

    Args:
        folder: the log folder to show in TensorBoard; one file per run is made or replaced.
        history: epochs logged so far, each with its number under "epoch".
    """

    def __init__(self, folder: str | Path, history: Sequence[Mapping[str, float]] = ()):
        self.path = Path(folder) / "events.out.tfevents.0000000000.keras_microseg"
        start = _field(1, 1, struct.pack("<d", time.time())) + _field(3, 2, _sized(b"brain.Event:2"))
        with io.atomic_path(self.path) as temporary:
            temporary.write_bytes(_record(start) + b"".join(self._event(row) for row in history))

    def write(self, row: Mapping[str, float]) -> None:
        """Append the values of one epoch."""
        with open(self.path, "ab") as file:
            file.write(self._event(row))

    @staticmethod
    def _event(row: Mapping[str, float]) -> bytes:
        values = b""
        for name, value in row.items():
            if name != "epoch":
                tag = f"validation/{name[4:]}" if name.startswith("val_") else f"training/{name}"
                pair = _field(1, 2, _sized(tag.encode())) + _field(2, 5, struct.pack("<f", value))
                values += _field(1, 2, _sized(pair))
        event = _field(1, 1, struct.pack("<d", time.time())) + _field(2, 0, _varint(int(row["epoch"])))
        return _record(event + _field(5, 2, _sized(values)))


def _field(number: int, wire_type: int, data: bytes) -> bytes:
    return _varint(number << 3 | wire_type) + data


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the format asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """JSON form of settings objects, NumPy numbers and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    return str(value)
