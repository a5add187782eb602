import keras
import numpy as np
import pytest
from harness import randomize, sample, to_numpy

from keras_microseg import backend
from keras_microseg.checks import FileError, MissingPackageError, UserError
from keras_microseg.models import delta_net as networks
from keras_microseg.models.delta_net import NetworkSettings, PairNetwork, delta_net, frame_unet, transfer_branch
from keras_microseg.models.saving import load_model, save_model

TINY = {"features": 4, "levels": 2, "in_channels": 1}
VARIANTS = [
    {},
    {"head": "product"},
    {"fusion": "symmetric"},
    {"head": "product", "fusion": "symmetric", "stride": 2},
    {"stride": 2, "head_filters": (6,), "head_kernel": 1},
    {"one_batch": True, "in_channels": 2},
]


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_published_parameter_counts():
    assert trainable(delta_net()) == 7_884_172
    assert trainable(frame_unet(NetworkSettings(tasks=("A1",)))) == 7_763_074
    branch = sum(trainable_of(layer) for layer in frame_unet().layers if layer.name.startswith("enc4"))
    assert branch == 885_760
    single = trainable(delta_net(NetworkSettings(tasks=("A2",))))
    assert 7_884_172 - single == 60_582


def trainable_of(layer):
    return sum(int(np.prod(v.shape)) for v in layer.trainable_variables)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_encoding_once_gives_what_the_whole_network_gives(options):
    settings = NetworkSettings(**(TINY | options))
    model = delta_net(settings)
    randomize(model)
    c = settings.in_channels
    x = sample((2, 16, 24, 2 * c))
    whole = {task: to_numpy(y) for task, y in model(x, training=False).items()}
    cut = PairNetwork(model, settings)
    first, second = (cut.project(cut.encode(x[..., i * c : (i + 1) * c])) for i in range(2))
    for task, found in cut.compare(first, second).items():
        p = softmax(whole[task])
        assert whole[task].shape == (2, 16, 24, 4)
        np.testing.assert_allclose(found[..., 0], p[..., 2] + p[..., 3], atol=1e-5)
        np.testing.assert_allclose(found[..., 1], p[..., 1] + p[..., 3], atol=1e-5)
        best = p.argmax(-1)
        assert np.mean(found[..., 2] == (best >= 2)) > 0.999
        assert np.mean(found[..., 3] == (best % 2 == 1)) > 0.999


@pytest.mark.parametrize("head", networks.HEADS)
def test_symmetric_networks_exchange_classes_when_frames_are_exchanged(head):
    model = delta_net(NetworkSettings(**TINY, head=head, fusion="symmetric"))
    randomize(model)
    x = sample((1, 8, 8, 2))
    there, back = (to_numpy(model(frames, training=False)["A1"]) for frames in (x, x[..., ::-1].copy()))
    np.testing.assert_allclose(there, back[..., [0, 2, 1, 3]], atol=1e-5)


def test_product_heads_multiply_two_masks():
    model = delta_net(NetworkSettings(**TINY, head="product"))
    randomize(model)
    p = softmax(to_numpy(model(sample((1, 8, 8, 2)), training=False)["A2"]))
    first, second = p[..., 2] + p[..., 3], p[..., 1] + p[..., 3]
    np.testing.assert_allclose(p[..., 3], first * second, atol=1e-6)


def test_one_batch_changes_batch_statistics_but_not_inference():
    plain, joint = (delta_net(NetworkSettings(**TINY, one_batch=b)) for b in (False, True))
    randomize(plain)
    joint.set_weights(plain.get_weights())
    x = sample((2, 8, 8, 2))
    x[..., 1] *= 3
    same, other = (to_numpy(m(x, training=False)["A1"]) for m in (plain, joint))
    np.testing.assert_allclose(same, other, atol=1e-5)
    same, other = (to_numpy(m(x, training=True)["A1"]) for m in (plain, joint))
    assert np.abs(same - other).max() > 1e-3


def test_saved_and_loaded_with_settings(tmp_path):
    settings = NetworkSettings(**TINY, stride=2, head="product")
    model = delta_net(settings)
    randomize(model)
    import dataclasses

    save_model(model, tmp_path / "m.keras", {"network": dataclasses.asdict(settings)})
    again, card = load_model(tmp_path / "m.keras")
    assert NetworkSettings.from_card(card) == settings
    x = sample((1, 16, 16, 2))
    np.testing.assert_allclose(
        to_numpy(model(x, training=False)["A2"]), to_numpy(again(x, training=False)["A2"]), atol=1e-6
    )


def test_branch_weights_are_transferred_by_name():
    unet, net = frame_unet(NetworkSettings(**TINY, tasks=("A1",))), delta_net(NetworkSettings(**TINY))
    randomize(unet)
    head = [np.array(w) for w in net.get_layer("A1_1").get_weights()]
    copied = transfer_branch(unet, net)
    assert "enc1_a" in copied and "dec1_b_norm" in copied and "up1" in copied
    for name in copied:
        for ours, theirs in zip(net.get_layer(name).get_weights(), unet.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(head[0], net.get_layer("A1_1").get_weights()[0])
    with pytest.raises(UserError, match="enc1_a"):
        transfer_branch(frame_unet(NetworkSettings(features=3, levels=2, in_channels=1)), net)


def test_settings_are_checked():
    with pytest.raises(UserError, match="head"):
        NetworkSettings(head="other")
    with pytest.raises(UserError, match="tasks"):
        NetworkSettings(tasks=("A1", "A1"))
    with pytest.raises(UserError, match="network"):
        NetworkSettings.from_card({})


def test_bfloat16_keeps_logits_in_float32():
    from keras_microseg.training.precision import in_bfloat16

    for options in ({}, {"stride": 2, "head": "product"}):
        model = in_bfloat16(delta_net(NetworkSettings(**TINY, **options)))
        y = model(sample((1, 8, 8, 2)), training=False)["A1"]
        assert keras.backend.standardize_dtype(y.dtype) == "float32"


class TestTorchWeights:
    """State files of the layout of the original, generated with torch."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    def branch(self, torch, f=4, channels=3):
        from collections import OrderedDict

        nn = torch.nn

        def block(i, o, name):
            return nn.Sequential(
                OrderedDict(
                    [
                        (f"{name}conv1", nn.Conv2d(i, o, 3, padding=1, bias=False)),
                        (f"{name}norm1", nn.BatchNorm2d(o)),
                        (f"{name}relu1", nn.ReLU()),
                        (f"{name}conv2", nn.Conv2d(o, o, 3, padding=1, bias=False)),
                        (f"{name}norm2", nn.BatchNorm2d(o)),
                        (f"{name}relu2", nn.ReLU()),
                    ]
                )
            )

        class UNet(nn.Module):
            def __init__(self):
                super().__init__()
                widths = [channels, f, 2 * f, 4 * f, 8 * f, 16 * f]
                for i in range(1, 5):
                    setattr(self, f"encoder{i}", block(widths[i - 1], widths[i], f"enc{i}"))
                self.bottleneck = block(widths[4], widths[5], "bottleneck")
                for i in range(4, 0, -1):
                    setattr(self, f"upconv{i}", nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2))
                    setattr(self, f"decoder{i}", block(2 * widths[i], widths[i], f"dec{i}"))
                self.conv = nn.Conv2d(f, 2, 1)

            def features(self, x):
                skips = []
                for i in range(1, 5):
                    x = getattr(self, f"encoder{i}")(x)
                    skips.append(x)
                    x = nn.functional.max_pool2d(x, 2)
                x = self.bottleneck(x)
                for i in range(4, 0, -1):
                    x = torch.cat([getattr(self, f"upconv{i}")(x), skips[i - 1]], 1)
                    x = getattr(self, f"decoder{i}")(x)
                return x

            def forward(self, x):
                return self.conv(self.features(x))

        return UNet()

    def siamese(self, torch, f=4):
        nn, unet = torch.nn, self.branch(torch, f)

        def head():
            widths = [2 * f, 2 * f, f, f // 2, 3]
            parts = []
            for i, o in zip(widths, widths[1:], strict=False):
                parts += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
            return nn.Sequential(*parts, nn.Conv2d(3, 4, 1))

        class Siamese(nn.Module):
            def __init__(self):
                super().__init__()
                self.unet = unet
                self.encoder1, self.upconv1 = unet.encoder1, unet.upconv1  # aliases, as in the original
                self.cd1, self.cd2 = head(), head()
                self.again = self.cd1

            def forward(self, a, b):
                x = torch.cat([self.unet.features(a), self.unet.features(b)], 1)
                return self.cd1(x), self.cd2(x)

        return Siamese()

    def shake(self, torch, module):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in module.state_dict().items():
                if value.dtype.is_floating_point:
                    noise = torch.rand(value.shape, generator=generator)
                    value.copy_(noise + 0.5 if "running_var" in name else noise - 0.5)
        return module.eval()

    def test_unet(self, torch, tmp_path):
        from keras_microseg.models.torch_weights import load_torch_weights

        source = self.shake(torch, self.branch(torch))
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "u.pt")
        model, card = load_torch_weights(tmp_path / "u.pt")
        x = sample((1, 16, 16, 3))
        with torch.no_grad():
            expected = source(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        found = backend.compile_predict(model)(x)["A1"]
        np.testing.assert_allclose(found[..., ::-1], expected, atol=1e-4, rtol=1e-4)
        assert card["kind"] == "frame_unet"

    def test_siamese(self, torch, tmp_path):
        from keras_microseg.models.torch_weights import load_torch_weights

        source = self.shake(torch, self.siamese(torch))
        torch.save(source.state_dict(), tmp_path / "s.pt")
        model, card = load_torch_weights(tmp_path / "s.pt")
        x = sample((1, 16, 16, 6))
        frames = [torch.from_numpy(part).permute(0, 3, 1, 2) for part in (x[..., :3], x[..., 3:])]
        with torch.no_grad():
            expected = [y.permute(0, 2, 3, 1).numpy() for y in source(*frames)]
        found = backend.compile_predict(model)(x)
        for task, values in zip(("A1", "A2"), expected, strict=True):
            np.testing.assert_allclose(found[task], values, atol=1e-4, rtol=1e-4)
        assert card["kind"] == "delta_net"

    def test_other_files_are_refused(self, torch, tmp_path):
        from keras_microseg.models.torch_weights import load_torch_weights

        (tmp_path / "x.pt").write_bytes(b"nothing")
        with pytest.raises(FileError, match="x.pt"):
            load_torch_weights(tmp_path / "x.pt")
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "l.pt")
        with pytest.raises(FileError, match="encoder1"):
            load_torch_weights(tmp_path / "l.pt")
        with pytest.raises(FileError, match="no such file"):
            load_torch_weights(tmp_path / "none.pt")

    def test_without_torch_the_install_command_is_given(self, monkeypatch, tmp_path):
        import sys

        from keras_microseg.backend.torch_state import read_torch_state

        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingPackageError, match="pip install"):
            read_torch_state(tmp_path / "x.pt")
