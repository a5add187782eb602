"""Settings of the label-free particle workflow: presets, and the option names of the script it replaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_microseg.checks import UserError, check_choice, check_names, check_number
from keras_microseg.io.reference_layout import resolve_inputs
from keras_microseg.simulation.masks import MaskSettings

PRESETS = ("fast", "paper", "gpu")
PARTICLES = ("wgan", "outlines", "analytic")


@dataclasses.dataclass(frozen=True)
class TranslationSettings:
    """CycleGAN between micrographs and simulated masks.

    Attributes:
        tile: edge of the square training tiles, px.
        filters: channels of the first layer of the generators.
        num_blocks: residual blocks of the generators.
        num_levels: how often the generators halve the size before the blocks.
        skip: let the generators' last layer see the input.
        resize_convolution: no checkerboards, a little slower.
        discriminator_filters: channels of the first layer of the discriminators.
        discriminator_noise: standard deviation of the noise before each layer of the discriminators.
        batch_size: tiles of each domain per step.
        epochs: passes of `steps_per_epoch` batches.
        steps_per_epoch: batches per epoch.
        learning_rate: of Adam (beta_1 0.5) for all four networks.
        decay_start: share of the epochs after which the learning rate falls linearly to zero.
        cycle_weight: of the there-and-back errors.
        identity_weights: of the leave-alone errors (image -> mask network, mask -> image network), relative to
            `cycle_weight`.
        label_smoothing: of the discriminators' targets.
        cross_entropy: masks are compared by cross-entropy.
        pool_size: past images the discriminators are shown again.
        average: momentum of the average of the generators' weights; 0 = none.
        mixed_precision: compute in bfloat16.
        noise_input: give the mask -> image network a channel of noise, of which it makes grain and substrate.
        guide_steps: steps at the beginning in which the generators imitate a threshold and a painted mask, so that they
            do not exchange particles and ground; 0 = none.
        match_coverage: give the discriminators masks and images with the same share of particles.
        min_foreground: least share of particles in a tile of a micrograph.
    """

    tile: int = 192
    filters: int = 16
    num_blocks: int = 6
    num_levels: int = 2
    skip: bool = False
    resize_convolution: bool = True
    discriminator_filters: int = 32
    discriminator_noise: float = 0.0
    batch_size: int = 1
    epochs: int = 24
    steps_per_epoch: int = 150
    learning_rate: float = 4e-4
    decay_start: float = 0.5
    cycle_weight: float = 10.0
    identity_weights: tuple[float, float] = (0.0, 0.0)
    label_smoothing: float = 0.0
    cross_entropy: bool = False
    pool_size: int = 50
    average: float = 0.995
    mixed_precision: bool = True
    noise_input: bool = True
    guide_steps: int = 150
    match_coverage: bool = True
    min_foreground: float = 0.05

    def __post_init__(self) -> None:
        for name in (
            "tile",
            "filters",
            "num_levels",
            "discriminator_filters",
            "batch_size",
            "epochs",
            "steps_per_epoch",
        ):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("tile", self.tile, minimum=64, integer=True)
        for name in ("num_blocks", "pool_size", "guide_steps"):
            check_number(name, getattr(self, name), minimum=0, integer=True)
        for name in ("discriminator_noise", "cycle_weight"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("decay_start", "label_smoothing", "average", "min_foreground"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        weights = self.identity_weights
        weights = tuple(weights) if isinstance(weights, (tuple, list)) else (weights, weights)
        object.__setattr__(self, "identity_weights", tuple(float(w) for w in weights))


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Generated micrographs with their masks, and which of them are good enough to learn from.

    Attributes:
        count: pairs to generate.
        check: what finds the particles in a generated micrograph, to compare them with its mask: "network" (the model
            that ships with the package), "classical" (threshold and watershed), or "none".
        min_agreement: least overlap (IoU of the foreground) of mask and what was found; pairs below it are dropped.
            None = 3 median deviations below the median of all pairs, but at least 0.5.
        drop_unpainted: take particles out of the labels that the generator did not paint (see
            `segmentation.filtering.filter_by_brightness`).
        blur: sigma of a Gaussian blur of the generated micrographs, px.
    """

    count: int = 300
    check: str = "network"
    min_agreement: float | None = None
    drop_unpainted: bool = True
    blur: float = 0.0

    def __post_init__(self) -> None:
        check_number("count", self.count, minimum=10, integer=True)
        check_choice("check", self.check, ("network", "classical", "none"))
        if self.min_agreement is not None:
            check_number("min_agreement", self.min_agreement, minimum=0, maximum=1)
        check_number("blur", self.blur, minimum=0)


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The segmentation network that learns from the generated pairs.

    Attributes:
        start: "default" goes on from the model that ships with the package, "none" begins from random weights; or the
            path of a `.keras` file.
        architecture: "unet" or "multires_unet", for random weights.
        filters: channels of the first level, for random weights.
        outputs: "instances" (foreground, boundary, distance: particles are separated by what the network has learned)
            or "binary" (the foreground alone, separated by a watershed, as the source system does; MultiRes U-Net with
            the weighted cross-entropy).
        rendered: share of the samples that are rendered by formula instead of translated; it keeps the network from
            learning the quirks of one generator.
        tile: edge of the training tiles, px.
        batch_size: tiles per step.
        epochs: passes of `steps_per_epoch` batches.
        steps_per_epoch: batches per epoch.
        learning_rate: highest learning rate (cosine, AdamW).
        mixed_precision: compute in bfloat16.
    """

    start: str = "default"
    architecture: str = "multires_unet"
    filters: int = 16
    outputs: str = "instances"
    rendered: float = 0.3
    tile: int = 256
    batch_size: int = 8
    epochs: int = 8
    steps_per_epoch: int = 60
    learning_rate: float = 4e-4
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, ("unet", "multires_unet"))
        check_choice("outputs", self.outputs, ("instances", "binary"))
        for name in ("filters", "batch_size", "epochs", "steps_per_epoch"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("tile", self.tile, minimum=64, integer=True)
        if self.tile % 32:
            raise UserError(f"`tile` must be a multiple of 32. Received: tile={self.tile}.")
        check_number("rendered", self.rendered, minimum=0, maximum=1)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        if self.outputs == "binary" and self.start != "none":
            object.__setattr__(self, "start", "none")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The whole workflow; see `Settings.from_preset`.

    Attributes:
        images: files and folders of micrographs.
        outlines: folder of single-particle masks; None for `particles="analytic"`.
        preset: which preset the rest was taken from.
        particles: where particles of the masks come from: "wgan" learns outlines from those given, "outlines" uses them
            as they are, "analytic" makes shapes by formula.
        polarity: "bright" particles on dark ground, "dark" on bright, or "auto".
        info_bar: first row of the microscope's data bar, "auto", or None.
        pixel_size: like "1.2 nm"; None takes it from the files.
        outline_preset: preset of the outline training, see `workflows.outlines`.
        outline_epochs, outline_batch_size: instead of those of the preset.
        contrast: percentiles of an image that become 0 and 1.
        masks: how masks are simulated.
        num_masks: masks to simulate.
        match_masks: set coverage, size and clustering of the masks to those of the images.
        translation, pairs, network: see their classes.
        seed: start of all random numbers.
    """

    images: tuple[str, ...]
    outlines: str | None = None
    preset: str = "fast"
    particles: str = "wgan"
    polarity: str = "auto"
    info_bar: str | int | None = "auto"
    pixel_size: str | None = None
    outline_preset: str = "fast"
    outline_epochs: int | None = None
    outline_batch_size: int | None = None
    contrast: tuple[float, float] = (0.1, 99.9)
    masks: MaskSettings = dataclasses.field(default_factory=MaskSettings.sem)
    num_masks: int = 300
    match_masks: bool = True
    translation: TranslationSettings = dataclasses.field(default_factory=TranslationSettings)
    pairs: PairSettings = dataclasses.field(default_factory=PairSettings)
    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        images = (self.images,) if isinstance(self.images, str) else tuple(str(path) for path in self.images)
        object.__setattr__(self, "images", images)
        check_choice("preset", self.preset, PRESETS)
        check_choice("particles", self.particles, PARTICLES)
        check_choice("polarity", self.polarity, ("auto", "bright", "dark"))
        check_choice("outline_preset", self.outline_preset, PRESETS)
        check_number("num_masks", self.num_masks, minimum=10, integer=True)
        check_number("seed", self.seed, minimum=0, integer=True)
        if self.particles != "analytic" and not self.outlines:
            raise UserError(
                f"particles={self.particles!r} needs `outlines`, a folder of single-particle masks. Draw some 20 to "
                "40, one white particle per file, or use particles='analytic', which needs none."
            )
        if self.pairs.count > self.num_masks:
            object.__setattr__(self, "num_masks", self.pairs.count)
        if self.translation.tile > min(self.masks.size):
            raise UserError(
                f"The tile of the translation ({self.translation.tile} px) is larger than the masks {self.masks.size}."
            )

    @classmethod
    def from_preset(cls, preset: str, images: Any, outlines: Any = None, **changes: Any) -> Settings:
        """Settings of a preset with changes.

        Args:
            preset: "fast" for two CPU cores (under an hour), "paper" as published, "gpu" for one large GPU.
            images, outlines: see the class. One folder with `Input_Images` in it, as the older script wants it,
                stands for that, and its `Input_Masks` for the outlines.
            changes: fields of the class; those of its parts as `translation_epochs=10`, `network_start="none"`,
                `pairs_count=200`, `masks_max_overlap=0.1`.

        Raises:
            UserError: an unknown preset or setting, or a value out of range.
        """
        check_choice("preset", preset, PRESETS)
        parts = {name: dict(values) for name, values in _PRESETS[preset].items()}
        own: dict[str, Any] = parts.pop("settings")
        known = {field.name for field in dataclasses.fields(cls)}
        for name, value in changes.items():
            part, _, rest = name.partition("_")
            if name in known:
                own[name] = value
            elif part in _PARTS and rest in {field.name for field in dataclasses.fields(_PARTS[part])}:
                parts.setdefault(part, {})[rest] = value
            else:
                fields = {one: dataclasses.fields(kind) for one, kind in _PARTS.items()}
                inner = [f"{one}_{field.name}" for one, its in fields.items() for field in its]
                check_names([name], [*sorted(known - set(_PARTS)), *inner])
        for name, values in parts.items():
            if name in own:
                own[name] = dataclasses.replace(own[name], **values)
            else:
                own[name] = (MaskSettings.sem if name == "masks" else _PARTS[name])(**values)
        images = (images,) if isinstance(images, str) or not hasattr(images, "__iter__") else tuple(images)
        if len(images) == 1:
            first, outlines = resolve_inputs(images[0], outlines)
            images = (first,)
        if outlines is None and "particles" not in changes:
            own["particles"] = "analytic"
        return cls(
            images=tuple(str(path) for path in images),
            outlines=None if outlines is None else str(outlines),
            preset=preset,
            **own,
        )

    @classmethod
    def from_legacy(cls, preset: str = "fast", **options: Any) -> Settings:
        """Settings from the options of the script this workflow replaces, by their old names.

        Args:
            preset: what the options given here leave open.
            options: `ROOT_DIR` (with `Input_Images` and `Input_Masks` inside), `INPUT_IMAGES`, `INPUT_MASKS`, and those
                of `LEGACY`. Options that have lost their meaning (GPU numbers, memory growth, data loader, inference
                on whole images) are accepted and have no effect.

        Raises:
            UserError: an option that neither script knows.
        """
        options = dict(options)
        root = options.pop("ROOT_DIR", None)
        images, outlines = options.pop("INPUT_IMAGES", None), options.pop("INPUT_MASKS", None)
        if root is not None:
            images = images or f"{str(root).rstrip('/')}/Input_Images"
            outlines = outlines or f"{str(root).rstrip('/')}/Input_Masks"
        if images is None:
            raise UserError(
                "Name the folder of the micrographs: INPUT_IMAGES=..., or ROOT_DIR=... with Input_Images inside."
            )
        changes: dict[str, Any] = {}
        size = {"TILE_SIZE_H": options.pop("TILE_SIZE_H", None), "TILE_SIZE_W": options.pop("TILE_SIZE_W", None)}
        if any(size.values()):
            height, width = (int(value or 384) for value in size.values())
            changes["masks_size"] = (height, width)
            changes["translation_tile"] = min(height, width)
        if "DARK_BACKGROUND" in options:
            changes["polarity"] = "bright" if options.pop("DARK_BACKGROUND") else "dark"
        for name, value in options.items():
            if name in LEGACY:
                changes[LEGACY[name]] = value
            elif name not in _IGNORED and name[:1].isupper():
                known = ", ".join(sorted([*LEGACY, *_IGNORED, "ROOT_DIR", "INPUT_IMAGES", "INPUT_MASKS", *size]))
                raise UserError(f"Unknown option {name}. Known are {known}.")
            elif name not in _IGNORED:
                changes[name] = value
        if "UNET_FILTERS" in options:
            changes.setdefault("network_start", "none")
        return cls.from_preset(preset, images, outlines, **changes)


LEGACY: Mapping[str, str] = {
    "NUM_SIMULATED_MASKS": "num_masks",
    "MAX_PARTICLE_OVERLAP": "masks_max_overlap",
    "WGAN_BATCH_SIZE": "outline_batch_size",
    "WGAN_EPOCHS": "outline_epochs",
    "CYCLEGAN_BATCH_SIZE": "translation_batch_size",
    "CYCLEGAN_EPOCHS": "translation_epochs",
    "CYCLEGAN_USE_SKIPS": "translation_skip",
    "CYCLEGAN_FILTERS": "translation_filters",
    "GAUSSIAN_BLUR_AMOUNT": "pairs_blur",
    "UNET_BATCH_SIZE": "network_batch_size",
    "UNET_EPOCHS": "network_epochs",
    "UNET_FILTERS": "network_filters",
    "UNET_CONTRAST_OPTIMIZATION_RANGE": "contrast",
}
"""Old option -> setting of `from_preset`."""

_IGNORED = (
    "RUN_INFERENCE_ON_WHOLE_IMAGE", "USE_GPUS_NO", "USE_GPU_FOR_WHOLE_IMAGE_INFERENCE", "ALLOW_MEMORY_GROWTH",
    "USE_DATALOADER",
)  # fmt: skip
_PARTS = {
    "masks": MaskSettings,
    "translation": TranslationSettings,
    "pairs": PairSettings,
    "network": NetworkSettings,
}
_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fast": {
        "settings": {"outline_preset": "fast", "num_masks": 300},
        "masks": {},
        "translation": {},
        "pairs": {},
        "network": {},
    },
    "paper": {
        "settings": {"outline_preset": "paper", "num_masks": 1000, "match_masks": False, "masks": MaskSettings.paper()},
        "translation": {
            "tile": 384, "filters": 64, "num_blocks": 9, "num_levels": 3, "resize_convolution": False,
            "discriminator_filters": 128, "batch_size": 5, "epochs": 50, "steps_per_epoch": 200, "learning_rate": 2e-4,
            "decay_start": 0.75, "identity_weights": (0.5, 0.5), "average": 0.0, "mixed_precision": False,
            "noise_input": False, "guide_steps": 0, "match_coverage": False, "min_foreground": 0.1,
        },
        "pairs": {"count": 1000, "check": "none", "drop_unpainted": True},
        "network": {
            "start": "none", "outputs": "binary", "rendered": 0.0, "tile": 384, "batch_size": 5, "epochs": 50,
            "steps_per_epoch": 640, "learning_rate": 1e-3, "mixed_precision": False,
        },
    },
    "gpu": {
        "settings": {"outline_preset": "gpu", "num_masks": 1500},
        "masks": {},
        "translation": {
            "tile": 256, "filters": 48, "num_blocks": 9, "num_levels": 2, "discriminator_filters": 64, "batch_size": 8,
            "epochs": 60, "steps_per_epoch": 250, "learning_rate": 2e-4, "average": 0.999,
            "identity_weights": (0.1, 0.1),
        },
        "pairs": {"count": 1500},
        "network": {"epochs": 30, "steps_per_epoch": 200, "batch_size": 16},
    },
}  # fmt: skip
