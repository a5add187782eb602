"""Losses of maps, pixel by pixel. The formulas stand at the classes; see the package about shapes and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_microseg.checks import check_choice, check_number

_register = keras.saving.register_keras_serializable(package="keras_microseg")


@_register
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy with heavier foreground: `mean(BCE(y, p) * (1 + y * (weight - 1)))`.

    Args:
        weight: factor for pixels with y = 1, > 0; for example background pixels / foreground pixels.
        from_logits: y_pred are logits, not probabilities.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self, weight: float = 1.0, from_logits: bool = False, name: str = "weighted_binary_crossentropy", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.weight = float(check_number("weight", weight, minimum=0, exclusive=True))
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, weight = split_weight(y_true, y_pred)
        cross_entropy = ops.mean(_weighted_bce(y_true, y_pred, self.weight, self.from_logits), axis=-1)
        return cross_entropy if weight is None else cross_entropy * _share(weight)[..., 0]

    def get_config(self) -> dict:
        return {**super().get_config(), "weight": self.weight, "from_logits": self.from_logits}


@_register
class SoftDice(keras.losses.Loss):
    """1 - Dice coefficient of probabilities, per image and channel, then averaged over channels.

    `1 - (2 sum(y p) + s) / (sum(y) + sum(p) + s)`, or with `squared` the sums of squares in the denominator (Milletari
    et al. 2016, arXiv:1606.04797). `keras.losses.Dice` pools the whole batch; here every image counts alike, and
    `smooth` in pixels keeps images without foreground finite and their gradient small.

    Args:
        smooth: s, pixels, > 0.
        squared: squared sums in the denominator.
        from_logits: y_pred are logits.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self,
        smooth: float = 1.0,
        squared: bool = False,
        from_logits: bool = False,
        name: str = "soft_dice",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.smooth = float(check_number("smooth", smooth, minimum=0, exclusive=True))
        self.squared = bool(squared)
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, weight = split_weight(y_true, y_pred)
        p = ops.sigmoid(y_pred) if self.from_logits else y_pred
        return ops.mean(_soft_dice(y_true, p, self.smooth, self.squared, 1.0 if weight is None else weight), axis=-1)

    def get_config(self) -> dict:
        own = {"smooth": self.smooth, "squared": self.squared, "from_logits": self.from_logits}
        return {**super().get_config(), **own}


@_register
class FocalTversky(keras.losses.Loss):
    """`(1 - T) ** gamma` with the Tversky index `T = (TP + s) / (TP + alpha FP + beta FN + s)` per image and channel.

    beta > alpha punishes missed foreground; gamma < 1 favours hard images (Abraham & Khan 2019, arXiv:1810.07842, who
    write 1/gamma). alpha = beta = 0.5, gamma = 1 is the Dice loss.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
        gamma: exponent, > 0.
        smooth: s, pixels, > 0.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1.0,
        name: str = "focal_tversky",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.alpha = float(check_number("alpha", alpha, minimum=0))
        self.beta = float(check_number("beta", beta, minimum=0))
        self.gamma = float(check_number("gamma", gamma, minimum=0, exclusive=True))
        self.smooth = float(check_number("smooth", smooth, minimum=0, exclusive=True))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, weight = split_weight(y_true, y_pred)
        axes, weight = _spatial_axes(y_true), 1.0 if weight is None else weight
        hit = ops.sum(weight * y_true * y_pred, axis=axes)
        false = ops.sum(weight * (1 - y_true) * y_pred, axis=axes)
        missed = ops.sum(weight * y_true * (1 - y_pred), axis=axes)
        index = (hit + self.smooth) / (hit + self.alpha * false + self.beta * missed + self.smooth)
        # The power has an infinite slope at 0 for gamma < 1.
        return ops.mean(ops.power(ops.maximum(1 - index, keras.config.epsilon()), self.gamma), axis=-1)

    def get_config(self) -> dict:
        own = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma, "smooth": self.smooth}
        return {**super().get_config(), **own}


@_register
class DiceCrossentropy(keras.losses.Loss):
    """Cross-entropy + `dice_weight` x `SoftDice`: steady far from the goal, and blind to the share of the foreground.

    Args:
        exclusive: the channels are probabilities of classes that exclude each other (softmax), and the cross-entropy is
            the categorical one; else every channel stands for itself.
        dice_weight: factor of the Dice loss, >= 0.
        class_weights: factor per channel in the cross-entropy; None = all 1.
        smooth: of `SoftDice`.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self,
        exclusive: bool = False,
        dice_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
        smooth: float = 1.0,
        name: str = "dice_crossentropy",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.exclusive = bool(exclusive)
        self.dice_weight = float(check_number("dice_weight", dice_weight, minimum=0))
        self.class_weights = None if class_weights is None else [float(w) for w in class_weights]
        self.smooth = float(check_number("smooth", smooth, minimum=0, exclusive=True))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(N,) loss per image."""
        y_true, weight = split_weight(y_true, y_pred)
        weight = ops.ones_like(y_true[..., :1]) if weight is None else weight
        if self.exclusive:
            epsilon = keras.config.epsilon()
            cross_entropy = -y_true * ops.log(ops.clip(y_pred, epsilon, 1.0))
            factor = ops.cast(y_pred.shape[-1], y_pred.dtype)  # a sum over classes, where the mean below divides
        else:
            cross_entropy, factor = ops.binary_crossentropy(y_true, y_pred), 1.0
        if self.class_weights is not None:
            cross_entropy = cross_entropy * ops.convert_to_tensor(self.class_weights, dtype=cross_entropy.dtype)
        entropy = factor * _weighted_mean(ops.mean(cross_entropy, axis=-1, keepdims=True), weight)
        return entropy + self.dice_weight * ops.mean(_soft_dice(y_true, y_pred, self.smooth, False, weight), axis=-1)

    def get_config(self) -> dict:
        own = {
            "exclusive": self.exclusive,
            "dice_weight": self.dice_weight,
            "class_weights": self.class_weights,
            "smooth": self.smooth,
        }
        return {**super().get_config(), **own}


@_register
class InstanceMapsLoss(keras.losses.Loss):
    """One loss for the maps from which instances are decoded.

    Per pixel or image, by the name of the channel:
        `foreground`: BCE + SoftDice(smooth=1)
        `boundary`:   BCE * (1 + y (boundary_weight - 1))
        `distance`:   smooth L1 (Huber, delta 0.1, divided by delta) within the foreground, plus a tenth of it outside
        `flow_*`:     squared error within the foreground (outside, nothing is learned)
    The loss is the sum over channels, each times its entry in `weights`. Within the foreground means averaged over the
    foreground pixels of the image. The truth of the foreground is the channel `foreground` of y_true.

    y_true may carry one channel more than `outputs`: a weight >= 0 per pixel for all terms (0 = ignore).

    Args:
        outputs: names of the channels in order, `foreground` among them if any map is masked by it.
        weights: factor per channel name; missing names count 1.
        boundary_weight: factor for boundary pixels, > 0.
        from_logits: the channels `foreground` and `boundary` of y_pred are logits.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self,
        outputs: Sequence[str] = ("foreground", "boundary", "distance"),
        weights: Mapping[str, float] | None = None,
        boundary_weight: float = 3.0,
        from_logits: bool = False,
        name: str = "instance_maps_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.outputs = tuple(outputs)
        for output in self.outputs:
            check_choice("outputs", output.split("_")[0], ("foreground", "boundary", "distance", "flow"))
        self.weights = dict(weights or {})
        for output, weight in self.weights.items():
            check_choice("weights", output, self.outputs)
            check_number(f"weights[{output!r}]", weight, minimum=0)
        if self.outputs != ("boundary",):
            check_choice("'foreground'", "foreground", self.outputs)
        self.boundary_weight = float(check_number("boundary_weight", boundary_weight, minimum=0, exclusive=True))
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(N,) loss per image."""
        count = len(self.outputs)
        weight = y_true[..., count : count + 1] if y_true.shape[-1] > count else ops.ones_like(y_true[..., :1])
        channels = {name: i for i, name in enumerate(self.outputs)}
        total = 0.0
        inside = weight
        if "foreground" in channels:
            inside = weight * y_true[..., channels["foreground"] : channels["foreground"] + 1]
        for name, i in channels.items():
            term = self._term(name, y_true[..., i : i + 1], y_pred[..., i : i + 1], weight, inside)
            total = total + self.weights.get(name, 1.0) * term
        return total

    def _term(self, name: str, y: Any, p: Any, weight: Any, inside: Any) -> Any:
        if name == "foreground":
            cross_entropy = _weighted_mean(_weighted_bce(y, p, 1.0, self.from_logits), weight)
            probability = ops.sigmoid(p) if self.from_logits else p
            return cross_entropy + ops.mean(_soft_dice(y, probability, 1.0, False, weight), axis=-1)
        if name == "boundary":
            return _weighted_mean(_weighted_bce(y, p, self.boundary_weight, self.from_logits), weight)
        if name == "distance":
            error = _huber(y - p, 0.1)
            return _weighted_mean(error, inside) + 0.1 * _weighted_mean(error, weight - inside)
        return _weighted_mean(ops.square(y - p), inside)

    def get_config(self) -> dict:
        own = {
            "outputs": list(self.outputs),
            "weights": self.weights,
            "boundary_weight": self.boundary_weight,
            "from_logits": self.from_logits,
        }
        return {**super().get_config(), **own}


@_register
class FocalClassLoss(keras.losses.Loss):
    """Focal loss of class maps, one per task, with class weights and a trace of label smoothing.

    Per pixel and task, with p = softmax of the C logits, true class y and smoothing s:
        `q_c = 1 - s` for c = y, else `s / (C - 1)`;  `pt = sum_c q_c p_c + s`;  `alpha_y (1 - pt)^gamma (-ln pt)`
    The loss is the sum over tasks of the mean over pixels. Without `class_weights`, alpha is 1.

    y_true: (N, H, W, T), the class number of each task; a further channel is a weight >= 0 per pixel (0 = ignore), and
    the mean is then the weighted one over the batch. y_pred: {task: (N, H, W, C)} logits.

    Args:
        tasks: names, in the order of the channels of y_true.
        class_weights: alpha per task and class, see `data.frame_pairs.class_weights`.
        gamma: >= 0; 0 is weighted cross-entropy.
        smoothing: s.
        name, reduction, kwargs: see `keras.losses.Loss`.

    Reference: Lin et al. (2017), arXiv:1708.02002; the constants are those of MultiTaskDeltaNet.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("A1", "A2"),
        class_weights: Mapping[str, Sequence[float]] | None = None,
        gamma: float = 2.0,
        smoothing: float = 1e-5,
        name: str = "focal_class_loss",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.tasks = tuple(tasks)
        self.class_weights = {task: [float(w) for w in values] for task, values in (class_weights or {}).items()}
        for task in self.class_weights:
            check_choice("class_weights", task, self.tasks)
        self.gamma = float(check_number("gamma", gamma, minimum=0))
        self.smoothing = float(check_number("smoothing", smoothing, minimum=0, maximum=0.5))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(N,) loss per image."""
        count = len(self.tasks)
        total = sum(self._term(task, y_true[..., i], y_pred[task]) for i, task in enumerate(self.tasks))
        if y_true.shape[-1] > count:
            weight = y_true[..., count]
            return ops.sum(total * weight, axis=(1, 2)) / ops.maximum(ops.mean(ops.sum(weight, axis=(1, 2))), 1.0)
        return ops.mean(total, axis=(1, 2))

    def _term(self, task: str, y: Any, logits: Any) -> Any:
        """(N, H, W) loss per pixel."""
        classes, s = logits.shape[-1], self.smoothing
        true = ops.one_hot(ops.cast(y, "int32"), classes, dtype=logits.dtype)
        shifted = logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
        scale = ops.sum(ops.exp(shifted), axis=-1)
        p = ops.sum(true * ops.exp(shifted), axis=-1) / scale
        pt = p * (1 - s - s / (classes - 1)) + s / (classes - 1) + s
        # pt exceeds 1 by up to s; the power of a negative number would not be finite
        loss = ops.power(ops.maximum(1 - pt, 1e-12), self.gamma) * -ops.log(ops.maximum(pt, 1e-30))
        alpha = self.class_weights.get(task)
        return loss if alpha is None else loss * ops.sum(true * ops.convert_to_tensor(alpha, logits.dtype), axis=-1)

    def get_config(self) -> dict:
        own = {
            "tasks": list(self.tasks),
            "class_weights": self.class_weights,
            "gamma": self.gamma,
            "smoothing": self.smoothing,
        }
        return {**super().get_config(), **own}


@_register
class DiceFocal(keras.losses.Loss):
    """Weighted Dice + `focal_weight` x categorical focal loss of class maps (softmax probabilities).

    Over batch, rows and columns, with soft TP_k = sum(y p), FP_k = sum(p) - TP_k, FN_k = sum(y) - TP_k:
        `F_k = (2 TP_k + s) / (2 TP_k + FN_k + FP_k + s)`, `DL = 1 - sum_k w_k F_k / K`
        `FL = mean over batch, pixels and classes of -alpha y (1 - p)^gamma ln p`, p within [1e-7, 1 - 1e-7]
    These are the formulas of segmentation_models 1.0.x, which has s = 1e-5 and one Dice over the whole batch; 0.2.1 had
    s = 1 and one per image (`per_image`). With weights of mean 1, DL lies in 0..1. y_true may be soft (shares of
    classes), and may carry one channel more, a weight >= 0 per pixel (0 = ignore) for all terms.

    Args:
        class_weights: w_k; None = all 1.
        focal_weight: c, >= 0.
        alpha, gamma: of the focal loss.
        smooth: s, pixels, > 0.
        per_image: one Dice per image, averaged, instead of one over the batch.
        label_smoothing: y becomes `y (1 - e) + e / K`.
        weighted_focal: let w_k weigh the focal loss too.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        focal_weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        smooth: float = 1e-5,
        per_image: bool = False,
        label_smoothing: float = 0.0,
        weighted_focal: bool = False,
        name: str = "dice_focal",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.class_weights = None if class_weights is None else [float(w) for w in class_weights]
        self.focal_weight = float(check_number("focal_weight", focal_weight, minimum=0))
        self.alpha = float(check_number("alpha", alpha, minimum=0))
        self.gamma = float(check_number("gamma", gamma, minimum=0))
        self.smooth = float(check_number("smooth", smooth, minimum=0, exclusive=True))
        self.per_image = bool(per_image)
        self.label_smoothing = float(check_number("label_smoothing", label_smoothing, minimum=0, maximum=0.5))
        self.weighted_focal = bool(weighted_focal)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(N,) loss per image; the Dice of the batch counts for each of its images."""
        y, weight = split_weight(y_true, y_pred)
        weight = ops.ones_like(y[..., :1]) if weight is None else weight
        classes = y_pred.shape[-1]
        if self.label_smoothing:
            y = y * (1 - self.label_smoothing) + self.label_smoothing / classes
        w = None if self.class_weights is None else ops.convert_to_tensor(self.class_weights, dtype=y_pred.dtype)
        axes = tuple(range(1 if self.per_image else 0, len(y.shape) - 1))
        both = 2 * ops.sum(weight * y * y_pred, axis=axes)
        score = (both + self.smooth) / (ops.sum(weight * (y + y_pred), axis=axes) + self.smooth)
        dice = 1 - ops.mean(score if w is None else score * w, axis=-1)
        p = ops.clip(y_pred, 1e-7, 1 - 1e-7)
        focal = -self.alpha * y * ops.power(1 - p, self.gamma) * ops.log(p)
        if w is not None and self.weighted_focal:
            focal = focal * w
        if self.focal_weight == 0:
            return dice + ops.zeros_like(ops.sum(y_pred, axis=tuple(range(1, len(y.shape)))))
        focal = _weighted_mean(ops.mean(focal, axis=-1, keepdims=True), weight)
        return dice + self.focal_weight * focal

    def get_config(self) -> dict:
        names = ("class_weights", "focal_weight", "alpha", "gamma", "smooth", "per_image", "label_smoothing")
        return {**super().get_config(), **{n: getattr(self, n) for n in (*names, "weighted_focal")}}


def split_weight(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """y_true without its weight channel, and that channel (N, *spatial, 1), or None when there is none."""
    count = y_pred.shape[-1]
    return (y_true[..., :count], y_true[..., count:]) if y_true.shape[-1] == count + 1 else (y_true, None)


def _share(weight: Any) -> Any:
    """Weights whose mean over every image is 1; all 0 where none is positive."""
    mean = ops.mean(weight, axis=tuple(range(1, len(weight.shape))), keepdims=True)
    return weight / ops.maximum(mean, keras.config.epsilon())


def _spatial_axes(x: Any) -> tuple[int, ...]:
    return tuple(range(1, len(x.shape) - 1))


def _weighted_bce(y: Any, p: Any, weight: float, from_logits: bool) -> Any:
    cross_entropy = ops.binary_crossentropy(y, p, from_logits=from_logits)
    return cross_entropy if weight == 1.0 else cross_entropy * (1 + y * (weight - 1))


def _soft_dice(y: Any, p: Any, smooth: float, squared: bool, weight: Any = 1.0) -> Any:
    """(N, C) loss per image and channel."""
    axes = _spatial_axes(y)
    both = ops.sum(weight * y * p, axis=axes)
    sizes = ops.sum(weight * (y * y + p * p if squared else y + p), axis=axes)
    return 1 - (2 * both + smooth) / (sizes + smooth)


def _huber(error: Any, delta: float) -> Any:
    size = ops.abs(error)
    return ops.where(size < delta, ops.square(size) / (2 * delta), size - delta / 2)


def _weighted_mean(values: Any, weight: Any) -> Any:
    """(N,) mean over all pixels and channels with weights; 0 where all weights are 0."""
    axes = tuple(range(1, len(values.shape)))
    return ops.sum(values * weight, axis=axes) / ops.maximum(ops.sum(weight, axis=axes), 1.0)
