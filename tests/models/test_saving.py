import json
import zipfile

import keras
import numpy as np
import pytest

from keras_microseg.checks import FileError, UserError
from keras_microseg.models import saving

pytestmark = pytest.mark.network
CARD = {"outputs": ["foreground"], "contrast": [0.5, 99.5], "version": 1}


@pytest.fixture
def model():
    inputs = keras.layers.Input((None, None, 1))
    return keras.Model(inputs, keras.layers.Conv2D(2, 3, padding="same")(inputs))


@pytest.fixture
def model_path(model, tmp_path):
    return saving.save_model(model, tmp_path / "net.keras", CARD)


def rewrite(path, change):
    """Apply `change(name, bytes) -> bytes or None` to every member of a zip file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


def edit_layer(path, **values):
    """Overwrite entries of the convolution's description."""

    def change(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        next(layer for layer in config["config"]["layers"] if "Conv" in layer["class_name"]).update(values)
        return json.dumps(config)

    rewrite(path, change)


def test_model_and_card_come_back(model, model_path, tmp_path):
    loaded, card = saving.load_model(model_path)
    x = np.random.default_rng(0).random((1, 8, 9, 1)).astype("float32")
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(m(x)) for m in (loaded, model)), atol=1e-6)
    assert card == CARD == saving.read_card(model_path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.keras"]
    assert len(saving.sha256(model_path)) == 64


def test_plain_keras_opens_the_file(model_path):
    assert keras.saving.load_model(model_path).count_params() == 20


def test_a_failed_write_leaves_the_old_file(model, model_path, monkeypatch):
    before = model_path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.saving, "save_model", full_disk)
    with pytest.raises(FileError, match="full"):
        saving.save_model(model, model_path, CARD)
    assert model_path.read_bytes() == before and len(list(model_path.parent.iterdir())) == 1


@pytest.mark.parametrize("size", [0, 10, 0.5, -1])
def test_cut_off_files_are_named(model_path, size):
    content = model_path.read_bytes()
    model_path.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(FileError, match=r"net\.keras.*(cut off|damaged)"):
        saving.load_model(model_path)


def test_every_flipped_byte_of_the_weights_is_found(model_path):
    content = bytearray(model_path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    model_path.write_bytes(content)
    with pytest.raises(FileError, match=r"net\.keras"):
        saving.load_model(model_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_name": "Lambda"}, "Lambda"),
        ({"module": "os", "class_name": "system", "registered_name": None}, r"os\.system"),
        ({"class_name": "NoSuchLayer"}, "cannot open"),
    ],
)
def test_unsafe_and_unknown_layers_are_refused(model_path, values, message):
    edit_layer(model_path, **values)
    with pytest.raises(FileError, match=f"net.keras.*{message}"):
        saving.load_model(model_path)


def test_a_real_lambda_is_refused(tmp_path):
    inputs = keras.layers.Input((None, None, 1))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    path = saving.save_model(model, tmp_path / "code.keras", CARD)
    with pytest.raises(FileError, match=r"code\.keras.*Lambda"):
        saving.load_model(path)


def test_a_layer_of_another_backend_names_that_backend(model_path):
    wrapper, other = ("JaxLayer", "jax") if keras.config.backend() != "jax" else ("TorchModuleWrapper", "torch")
    edit_layer(model_path, class_name=wrapper)
    with pytest.raises(FileError, match=f"KERAS_BACKEND={other}"):
        saving.load_model(model_path)


def test_a_missing_card_can_be_passed(model_path):
    rewrite(model_path, lambda name, content: None if name == saving.CARD_MEMBER else content)
    assert saving.read_card(model_path) is None
    with pytest.raises(FileError, match=r"net\.keras.*no card.*`card`"):
        saving.load_model(model_path)
    assert saving.load_model(model_path, CARD)[1] == CARD


def test_other_files_are_refused(model, tmp_path):
    with pytest.raises(FileError, match="no such model file"):
        saving.load_model(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(FileError, match="not a .keras file"):
        saving.load_model(tmp_path / "text.keras")
    with zipfile.ZipFile(tmp_path / "zip.keras", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(FileError, match="not a Keras 3 model"):
        saving.load_model(tmp_path / "zip.keras")
    with pytest.raises(UserError, match=".keras"):
        saving.save_model(model, tmp_path / "net.h5", CARD)
    with pytest.raises(UserError, match="card"):
        saving.save_model(model, tmp_path / "net.keras", {"a": np.zeros(3)})


def test_old_layer_names_are_understood(tmp_path):
    from keras_microseg.layers.padding import ReflectionPadding2D

    inputs = keras.layers.Input((None, None, 1))
    model = keras.Model(inputs, ReflectionPadding2D()(inputs))
    path = saving.save_model(model, tmp_path / "old.keras", CARD)

    def rename(name, content):
        return content.replace(b"keras_microseg>Reflection", b"Custom>Reflection") if name == "config.json" else content

    rewrite(path, rename)
    assert b"Custom>ReflectionPadding2D" in zipfile.ZipFile(path).read("config.json")
    loaded, _ = saving.load_model(path)
    x = np.random.default_rng(0).random((1, 8, 9, 1)).astype("float32")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(m(x)) for m in (loaded, model)))


def test_start_values_survive_loading(tmp_path):
    inputs = keras.Input((8, 8, 1))
    layer = keras.layers.Conv2D(2, 3, kernel_initializer=keras.initializers.HeNormal(seed=3))
    model = keras.Model(inputs, layer(inputs))
    saving.save_model(model, tmp_path / "model.keras", CARD)
    again = saving.load_model(tmp_path / "model.keras")[0].layers[-1]
    np.testing.assert_array_equal(again.get_weights()[0], layer.get_weights()[0])
    assert type(again.kernel_initializer) is keras.initializers.HeNormal
    assert again.get_config() == layer.get_config()
