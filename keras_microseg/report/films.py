"""A film strip for pages: the frames of a video one at a time, chosen by slider, arrow keys, thumbnails, or played.

Every frame is held once, with its overlay as a layer that can be hidden. Without scripts, thumbnails and arrow keys
still choose the frame (they are a group of radio buttons).
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image as Picture

from keras_microseg.report.html import data_uri
from keras_microseg.report.page import Widget

MAX_FRAMES = 80
MAX_SIDE = 512
_THUMB = 44
_SHOWN = 560

_STYLE = """
.film .stage > input { position: absolute; opacity: 0; pointer-events: none; }
.film .stage > .frame { display: none; }
.film .stage > input:checked + .frame { display: block; }
.film .stage > input:focus-visible + .frame .picture { outline: 3px solid var(--accent); outline-offset: 2px; }
.film .frame .picture { margin-bottom: 6px; }
.film .frame .facts-line { font-variant-numeric: tabular-nums; font-size: 0.92rem; min-height: 1.6em; }
.film .controls { display: flex; align-items: center; gap: 12px; margin: 8px 0; flex-wrap: wrap; }
.film .controls input[type=range] { flex: 1 1 240px; accent-color: var(--accent); }
.film .controls button { font: inherit; font-size: 0.92rem; padding: 3px 14px; border-radius: 999px; cursor: pointer;
  border: 1px solid var(--line); background: var(--card); color: var(--ink); }
.film .controls .switch { margin: 0; }
.film .strip { display: flex; gap: 3px; overflow-x: auto; padding: 2px 2px 8px; }
.film .strip label { flex: 0 0 auto; cursor: pointer; text-align: center; font-size: 0.72rem; color: var(--soft);
  border-bottom: 3px solid transparent; line-height: 1.4; }
.film .strip label.now { border-color: var(--accent); color: var(--ink); }
.film .strip img { border-radius: 2px; height: 44px; width: auto; }
.film:has(.layers:not(:checked)) .outlines { visibility: hidden; }
@media print { .film .controls, .film .strip { display: none; } }
"""

_SCRIPT = """
const film = document.getElementById(NAME);
const radios = [...film.querySelectorAll('.stage > input')], labels = [...film.querySelectorAll('.strip label')];
const range = film.querySelector('input[type=range]'), play = film.querySelector('button');
let timer = null;
const show = (i, scroll) => {
  radios[i].checked = true; range.value = i;
  labels.forEach((label, k) => label.classList.toggle('now', k === i));
  const strip = labels[i].parentElement;
  if (scroll) strip.scrollLeft = labels[i].offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
};
const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
range.hidden = play.hidden = false;
range.addEventListener('input', () => { stop(); show(+range.value, true); });
radios.forEach((radio, i) => radio.addEventListener('change', () => { stop(); show(i, true); }));
play.addEventListener('click', () => {
  if (timer) return stop();
  play.textContent = 'Stop';
  timer = setInterval(() => show((+range.value + 1) % radios.length, true), 220);
});
show(radios.findIndex((radio) => radio.checked), false);
"""


@dataclasses.dataclass(frozen=True)
class FilmFrame:
    """One frame of a film strip.

    Attributes:
        picture: (Y, X) uint8 grey.
        layer: (Y, X, 4) uint8 overlay on a transparent ground, or None.
        label: short text under the thumbnail (frame number).
        caption: line under the picture.
    """

    picture: np.ndarray
    layer: np.ndarray | None
    label: str
    caption: str


def choose_frames(count: int, limit: int = MAX_FRAMES) -> np.ndarray:
    """Indices of at most `limit` frames, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def film_strip(name: str, frames: Sequence[FilmFrame], *, caption: str = "", legend: str = "Outlines") -> Widget:
    """The frames as a widget of a page.

    Args:
        name: distinct in the page.
        frames: in order, one size; sides above `MAX_SIDE` are reduced.
        caption: below it.
        legend: text beside the switch of the overlay.

    Returns:
        A `Widget`; the first frame is shown at first.
    """
    ident = "film-" + re.sub(r"[^0-9A-Za-z_-]", "-", name)
    height, width = frames[0].picture.shape
    step = max(1, math.ceil(max(height, width) / MAX_SIDE))
    shown = min(_SHOWN, max(width // step * 4, 160))
    if height > width:
        shown = min(shown, round(_SHOWN * width / height))
    smooth = "" if step > 1 or shown < 1.5 * width else ' class="pixelated"'
    stage, strip = [], []
    for i, frame in enumerate(frames):
        ground = frame.picture if step == 1 else _reduce(frame.picture, step)
        images = f'<img{smooth} alt="{_safe(frame.label)}" src="{data_uri(ground, "jpeg")}">'
        if frame.layer is not None and frame.layer[..., 3].any():
            classes = "outlines" if not smooth else "outlines pixelated"
            images += f'<img class="{classes}" alt="" src="{data_uri(frame.layer[::step, ::step])}">'
        checked = " checked" if i == 0 else ""
        stage.append(
            f'<input type="radio" name="{ident}" id="{ident}-{i}"{checked} aria-label="{_safe(frame.label)}">'
            f'<div class="frame"><div class="picture" style="max-width:{shown}px">{images}</div>'
            f'<div class="facts-line">{_safe(frame.caption)}</div></div>'
        )
        thumb = np.asarray(Picture.fromarray(frame.picture).resize((max(1, round(_THUMB * width / height)), _THUMB)))
        strip.append(
            f'<label for="{ident}-{i}"><img alt="" src="{data_uri(thumb, "jpeg")}"><br>{_safe(frame.label)}</label>'
        )
    switch = f'<label class="switch"><input type="checkbox" class="layers" checked> {_safe(legend)}</label>'
    markup = (
        f'<style>{_STYLE}</style><div class="film" id="{ident}"><div class="stage">{"".join(stage)}</div>'
        f'<div class="controls"><button type="button" hidden>Play</button>'
        f'<input type="range" hidden min="0" max="{len(frames) - 1}" value="0" aria-label="Frame">{switch}</div>'
        f'<div class="strip">{"".join(strip)}</div></div>'
    )
    return Widget(markup, _SCRIPT.replace("NAME", f'"{ident}"'), caption)


def _reduce(picture: np.ndarray, step: int) -> np.ndarray:
    size = (max(1, picture.shape[1] // step), max(1, picture.shape[0] // step))
    return np.asarray(Picture.fromarray(picture).resize(size, Picture.Resampling.LANCZOS))


def _safe(text: str) -> str:
    return html.escape(str(text), quote=True)
