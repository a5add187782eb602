"""Model files: a `.keras` zip with our card (outputs, contrast, scale, ...) as an extra member.

Any Keras 3 opens such a file; the extra member does not disturb it. Files are loaded in safe mode, always: a file that
carries code instead of layers is refused.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.files import atomic_path

CARD_MEMBER = "keras_microseg.json"
_ONE_BACKEND = {"TorchModuleWrapper": "torch", "JaxLayer": "jax", "FlaxLayer": "jax", "TFSMLayer": "tensorflow"}
_RANDOM_STARTS = tuple(
    getattr(keras.initializers, name)
    for name in (
        "GlorotNormal",
        "GlorotUniform",
        "HeNormal",
        "HeUniform",
        "LecunNormal",
        "LecunUniform",
        "Orthogonal",
        "RandomNormal",
        "RandomUniform",
        "TruncatedNormal",
        "VarianceScaling",
    )
)
_TRUSTED_MODULES = ("keras", "keras_microseg", "builtins")


def save_model(model: keras.Model, path: str | Path, card: Mapping[str, Any]) -> Path:
    """Write a model and its card as one `.keras` file; complete, or not at all.

    Args:
        model: built model of stock and registered layers.
        path: file to write, ending in `.keras`.
        card: JSON values that inference needs (`outputs`, `contrast`, `diameter`, ...).

    Raises:
        UserError: another suffix, or a card that is not JSON.
        FileError: the file cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise UserError(f"A model file must end in .keras. Received: path={str(path)!r}")
    try:
        text = json.dumps(dict(card), indent=1)
    except TypeError as error:
        raise UserError(f"`card` may hold numbers, texts, lists and dictionaries only: {error}") from None
    with atomic_path(path) as temporary:
        keras.saving.save_model(model, temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CARD_MEMBER, text)
    return path


def load_model(path: str | Path, card: Mapping[str, Any] | None = None) -> tuple[keras.Model, dict[str, Any]]:
    """Open a model file of `save_model`, or a plain `.keras` file together with a `card`.

    Layer names of older files (`Custom>ReflectionPadding2D`) are understood. The model is not compiled.

    Args:
        path: the file.
        card: used instead of the card in the file; needed for files that have none.

    Returns:
        `(model, card)`.

    Raises:
        FileError: missing, damaged or unsafe file, one made for another backend, or one without a card; the message
            names the file and the remedy.
    """
    path = Path(path)
    config, found = _read_members(path)
    card = found if card is None else dict(card)
    if card is None:
        raise FileError(
            path,
            f"holds no card ({CARD_MEMBER}), so contrast and outputs are unknown.",
            "Use a model that keras-microseg train made, or pass `card` in Python.",
        )
    known = _old_names()
    _check_safe(path, config, known)
    blank = {f"keras_microseg>blank>{cls.__name__}": _blank(cls) for cls in _RANDOM_STARTS}
    for entry in _entries(config):
        name = f"keras_microseg>blank>{entry['class_name']}"
        if name in blank and entry.get("module") == "keras.initializers":
            entry["registered_name"] = name
    config.pop("compile_config", None)
    try:
        model = keras.saving.deserialize_keras_object(config, custom_objects=known | blank, safe_mode=True)
        model.load_weights(path)
    except Exception as error:  # Keras raises almost any type for an archive whose parts do not fit together
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileError(
            path, f"Keras cannot open this model: {reason[0]}", "Save it again, or get the file anew."
        ) from error
    _restore_starts(model)
    return model, card


def read_card(path: str | Path) -> dict[str, Any] | None:
    """The card of a model file without loading the model; None when the file has none."""
    return _read_members(Path(path))[1]


def command_for(card: Mapping[str, Any]) -> str | None:
    """The command that uses models with such a card, for messages; None where the card does not tell."""
    if card.get("kind") == "detector":
        return "particles detect"
    if card.get("ndim", 2) == 3 or "num_slices" in card:
        return "volume predict"
    if "frame_input" in card:
        return "filament run"
    if card.get("task"):
        return {"classes of pixels": "classify apply", "mineral translation": "mineral translate-apply"}.get(
            card["task"], "mineral predict"
        )
    return "segment" if "foreground" in (card.get("outputs") or ()) and "diameter" in card else None


def sha256(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, to name a model in results."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_members(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Configuration and card of a model file, every byte of which has passed the archive's checksum."""
    again = "Get the file anew, or train the model again."
    if not path.is_file():
        raise FileError(path, "there is no such model file.", "Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
            if damaged:
                raise FileError(path, f"is damaged (checksum of {damaged}).", again)
            if "config.json" not in names or "model.weights.h5" not in names:
                raise FileError(
                    path, "is a zip file but not a Keras 3 model.", "Save it with model.save('name.keras')."
                )
            config = json.loads(archive.read("config.json"))
            card = json.loads(archive.read(CARD_MEMBER)) if CARD_MEMBER in names else None
    except zipfile.BadZipFile:
        raise FileError(path, "is not a .keras file, or is cut off.", again) from None
    except FileError:
        raise
    except (ValueError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FileError(path, f"is damaged ({error}).", again) from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check its permissions.") from None
    if not isinstance(config, dict) or not isinstance(card, dict | None):
        raise FileError(path, "is damaged (its settings are not a dictionary).", again)
    return config, card


def _check_safe(path: Path, config: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse what is not made of layers of Keras and of this package."""
    described = {key: value for key, value in config.items() if key != "compile_config"}  # never loaded
    for entry in _entries(described):
        name, module = str(entry["class_name"]), entry.get("module")
        if name in ("Lambda", "__lambda__"):
            raise FileError(
                path,
                "contains a Lambda layer, that is program code, and was not opened.",
                "Use a model of named layers.",
            )
        if name in _ONE_BACKEND:
            backend = _ONE_BACKEND[name]
            if keras.backend.backend() != backend:
                raise FileError(
                    path,
                    f"contains a {name}, which runs on {backend} only.",
                    f"Set KERAS_BACKEND={backend} and start again.",
                )
            raise FileError(path, f"contains a {name}, that is program code, and was not opened.", "Use stock layers.")
        registered = str(entry.get("registered_name"))
        if keras.saving.get_registered_object(registered, custom_objects=known) is not None:
            continue  # resolved by that name, whatever module the file names
        if module is not None and str(module).split(".")[0] not in _TRUSTED_MODULES:
            raise FileError(
                path,
                f"refers to {module}.{name}, outside Keras, and was not opened.",
                "Register the layer in this package.",
            )


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    """All nested dictionaries that describe an object to be built."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for part in value.values():
            yield from _entries(part)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part)


def _blank(cls: type) -> type:
    """An initializer that gives zeros, in place of `cls` while a file is loaded; `_restore_starts` puts `cls` back.

    The file's weights replace the start values anyway, and drawing them takes 12 s on JAX: one compilation per shape.
    """

    def call(self: Any, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return keras.ops.zeros(shape, dtype or keras.config.floatx())

    return type(cls.__name__, (cls,), {"__call__": call, "stands_for": cls})


def _restore_starts(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, keras.initializers.Initializer) and hasattr(type(value), "stands_for"):
                value.__class__ = type(value).stands_for


def _old_names() -> dict[str, Any]:
    """Layers under the full registered names that older files carry. Also registers today's layers."""
    from keras_microseg.layers.padding import ReflectionPadding2D

    return {"Custom>ReflectionPadding2D": ReflectionPadding2D}
