"""Makes path.png of the README: a simulated micrograph, the particles found in it, their size distribution."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

import keras_microseg as km
from keras_microseg.image import PixelSize
from keras_microseg.report import figures, overlays
from keras_microseg.simulation import simulate_micrograph
from keras_microseg.workflows.demo import choose_method

HEIGHT = 380
size = PixelSize.parse("2 nm")
method = choose_method("auto")
for seed in range(100):  # a picture of what it looks like when it works; the measured scores stand below it
    rng = np.random.default_rng(seed)
    micrograph = simulate_micrograph(rng, (400, 420), "sem", diameter=(18, 26), captions=False)
    if not 60 <= micrograph.facts["particles"] <= 140 or micrograph.facts["coverage"] > 0.5:
        continue
    results = km.segment(micrograph.image, method=method, pixel_size=size)
    (record,) = results.images
    if km.evaluate(record.read_labels(), micrograph.labels, resamples=1)["f1"] > 0.9:
        break
plain = overlays.draw_scale_bar(np.repeat(overlays.to_grey8(micrograph.image)[..., None], 3, axis=2), size)
found = overlays.draw_outlines(micrograph.image, record.read_labels(), pixel_size=size, width=2)
figure = figures.size_distribution_figure(results.distributions["number"])
figure.set_size_inches(5.6, 4.75)
chart = Image.open(io.BytesIO(figures.figure_png(figure, dpi=80))).convert("RGB")

panels = [Image.fromarray(plain), Image.fromarray(found), chart]
panels = [panel.resize((round(panel.width * HEIGHT / panel.height), HEIGHT), Image.LANCZOS) for panel in panels]
gap = 14
picture = Image.new("RGB", (sum(panel.width for panel in panels) + 2 * gap, HEIGHT), "white")
x = 0
for panel in panels:
    picture.paste(panel, (x, 0))
    x += panel.width + gap
picture.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(Path(__file__).with_name("path.png"), optimize=True)
print(f"seed {seed}, {method}")
