"""Reading weight files of PyTorch as NumPy arrays, whatever the active backend; needs torch installed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from keras_microseg.checks import FileError, MissingPackageError


def read_torch_state(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary (`torch.save(model.state_dict(), path)`) by name, in file order.

    Nothing but tensors is unpickled (`weights_only=True`). A file that holds the dictionary under "state_dict" or
    "model" is understood, and the prefix "module." of `DataParallel` is dropped.

    Raises:
        MissingPackageError: torch is not installed.
        FileError: no such file, a damaged one, or one that holds a whole pickled model instead of a state.
    """
    try:
        import torch
    except ImportError:
        raise MissingPackageError("torch", "Reading PyTorch weight files", extra="torch") from None
    path = Path(path)
    if not path.is_file():
        raise FileError(path, "there is no such file.", "Check the path.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileError(
            path, f"is no PyTorch state ({reason}).", "Save it with torch.save(model.state_dict(), ...)."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise FileError(path, "holds no tensors by name.", "Save it with torch.save(model.state_dict(), ...).")
    return {name.removeprefix("module."): value.detach().numpy() for name, value in state.items()}
