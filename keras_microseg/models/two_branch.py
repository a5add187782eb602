"""Fine texture and coarse context in one network, for minerals that differ in texture inside of large grains.

A branch of plain convolutions at full resolution sees texture; a U-Net on the image reduced by means sees the grain and
its neighbours, many times further than a U-Net of the same cost at full resolution. Both are read from one image, so
tiles, halos and training crops are those of any other network.

Reference: the two paths of BiSeNet (Yu et al. 2018, arXiv:1808.00897) and HookNet (van Rijthoven et al. 2021,
arXiv:2006.12230).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_number
from keras_microseg.models.unet import conv_norm_relu, double_conv, u_path


def two_branch(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    num_outputs: int = 4,
    filters: Sequence[int] = (12, 24, 48, 96),
    *,
    reduction: int = 4,
    depth: int = 3,
    activation: str | None = None,
    name: str = "two_branch",
) -> keras.Model:
    """Network of two branches.

    Args:
        input_shape: (height, width, channels); sizes are multiples of `reduction * 2^(len(filters) - 2)`.
        num_outputs: channels of the result.
        filters: width of the fine branch, then of the levels of the coarse U-Net, finest first.
        reduction: how much coarser the context is, at least 2.
        depth: convolutions of the fine branch, 3 x 3 each.
        activation: None = softmax, sigmoid for one class.
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs) float32.
    """
    check_number("reduction", reduction, minimum=2, integer=True)
    check_number("depth", depth, minimum=1, integer=True)
    fine_width, *widths = filters = tuple(filters)
    if len(filters) < 3:
        raise UserError(f"`filters` needs one width of the fine branch, two or more of the coarse. Received: {filters}")
    image = keras.Input(input_shape, name="image")
    image_checked = layers.RequireMultiple(reduction * 2 ** (len(widths) - 1), name="size")(image)
    fine = image_checked
    for part in range(depth):
        fine = conv_norm_relu(fine, fine_width, f"fine{part}")
    # means keep the grey value of a grain and lose its noise; the fine branch hands its texture on as well
    x = keras.layers.Concatenate(name="reduced")(
        [
            keras.layers.AveragePooling2D(reduction, name=f"{part}_reduced")(tensor)
            for part, tensor in (("image", image_checked), ("fine", fine))
        ]
    )
    x = u_path(x, widths)
    x = layers.UpSampling2D(reduction, name="context")(x)
    x = keras.layers.Concatenate(name="both")([x, fine])
    x = double_conv(x, fine_width, "joined")
    activation = activation or ("sigmoid" if num_outputs == 1 else "softmax")
    maps = layers.Conv2D(num_outputs, 1, activation=activation, dtype="float32", name="maps")(x)
    return keras.Model(image, maps, name=name)
