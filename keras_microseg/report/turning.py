"""A turning 3D view for pages: surfaces of labels or masks, drawn by a small rasterizer in the page itself.

No WebGL, no library, nothing loaded: the mesh travels in the page and is drawn with a depth buffer on a canvas.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from typing import Any

import numpy as np
from skimage import measure

from keras_microseg.image import Image
from keras_microseg.report.overlays import PALETTE, unit_text
from keras_microseg.report.page import Widget

MAX_FACES = 40_000
_GRID = 112
_SIDE = 560

_STYLE = """
.turning canvas { width: 560px; max-width: 100%; aspect-ratio: 1; display: block; cursor: grab; border-radius: 6px;
  border: 1px solid var(--line); touch-action: none; background: #10161d; }
.turning canvas:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.turning .controls { display: flex; align-items: center; gap: 12px; margin: 8px 0; flex-wrap: wrap; max-width: 560px; }
.turning .controls input { flex: 1 1 200px; accent-color: var(--accent); }
.turning .controls button { font: inherit; font-size: 0.92rem; padding: 3px 14px; border-radius: 999px; cursor: pointer;
  border: 1px solid var(--line); background: var(--card); color: var(--ink); }
@media print { .turning .controls { display: none; } }
"""

_SCRIPT = """
const box = document.getElementById(NAME), canvas = box.querySelector('canvas'), mesh = DATA;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const points = new Uint16Array(bytes(mesh.points).buffer), faces = new Uint16Array(bytes(mesh.faces).buffer);
const colors = bytes(mesh.colors), parts = mesh.parts, size = mesh.size, side = canvas.width;
const slider = box.querySelector('input'), button = box.querySelector('button');
const context = canvas.getContext('2d'), image = context.createImageData(side, side);
const pixels = new Uint32Array(image.data.buffer), depth = new Float32Array(side * side);
const count = points.length / 3, screen = new Float32Array(points.length);
const scale = size.map((length) => length / 65535), radius = Math.hypot(...size) / 2;
let turn = 0.6, tilt = 0.45, zoom = 1, timer = null;
const corners = [...Array(8).keys()].map((i) => [i >> 2 & 1, i >> 1 & 1, i & 1].map((e, k) => e * size[k]));
const edges = [[0,1],[0,2],[0,4],[1,3],[1,5],[2,3],[2,6],[3,7],[4,5],[4,6],[5,7],[6,7]];
function project(z, y, x, out, at) {
  const c = Math.cos(turn), s = Math.sin(turn), ct = Math.cos(tilt), st = Math.sin(tilt);
  const px = x - size[2] / 2, py = y - size[1] / 2, pz = size[0] / 2 - z;
  const u = c * px - s * py, w = s * px + c * py, k = side * 0.47 / radius * zoom;
  out[at] = side / 2 + k * u; out[at + 1] = side / 2 + k * (st * w + ct * pz); out[at + 2] = k * (ct * w - st * pz);
}
function line(a, b) {
  const p = new Float32Array(6); project(...corners[a], p, 0); project(...corners[b], p, 3);
  const steps = Math.ceil(Math.max(Math.abs(p[3] - p[0]), Math.abs(p[4] - p[1]))) || 1;
  for (let i = 0; i <= steps; i++) {
    const t = i / steps, x = Math.round(p[0] + t * (p[3] - p[0])), y = Math.round(p[1] + t * (p[4] - p[1]));
    if (x < 0 || y < 0 || x >= side || y >= side) continue;
    const d = p[2] + t * (p[5] - p[2]), at = y * side + x;
    if (d < depth[at]) { depth[at] = d; pixels[at] = 0xff8a7a6a; }
  }
}
function draw() {
  pixels.fill(0xff1d1610); depth.fill(Infinity);
  for (let i = 0; i < count; i++)
    project(points[3*i] * scale[0], points[3*i+1] * scale[1], points[3*i+2] * scale[2], screen, 3 * i);
  let face = 0, base = 0, end = 0, part = 0;
  for (let f = 0; f < faces.length / 3; f++) {
    while (f >= end) { base = parts[part][0]; end = parts[part][1]; part++; }
    const a = 3 * (faces[3*f] + base), b = 3 * (faces[3*f+1] + base), c = 3 * (faces[3*f+2] + base);
    const ax = screen[a], ay = screen[a+1], az = screen[a+2];
    const ux = screen[b] - ax, uy = screen[b+1] - ay, uz = screen[b+2] - az;
    const vx = screen[c] - ax, vy = screen[c+1] - ay, vz = screen[c+2] - az;
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
    if (nz === 0) continue;
    const n = Math.hypot(nx, ny, nz), flip = nz > 0 ? -1 : 1;
    const shade = 0.28 + 0.72 * Math.max(0, flip * (0.35 * nx + 0.5 * ny) * -1 / n + 0.79 * Math.abs(nz) / n);
    const color = mesh.palette[colors[f]], light = Math.min(1, shade);
    const paint = 0xff000000 | (color[2] * light) << 16 | (color[1] * light) << 8 | (color[0] * light);
    const x0 = Math.max(0, Math.ceil(Math.min(ax, screen[b], screen[c])));
    const x1 = Math.min(side - 1, Math.floor(Math.max(ax, screen[b], screen[c])));
    const y0 = Math.max(0, Math.ceil(Math.min(ay, screen[b+1], screen[c+1])));
    const y1 = Math.min(side - 1, Math.floor(Math.max(ay, screen[b+1], screen[c+1])));
    for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) {
      const dx = x - ax, dy = y - ay, s = (dx * vy - dy * vx) / nz, t = (dy * ux - dx * uy) / nz;
      if (s < -0.001 || t < -0.001 || s + t > 1.001) continue;
      const d = az + s * uz + t * vz, at = y * side + x;
      if (d < depth[at]) { depth[at] = d; pixels[at] = paint; }
    }
  }
  edges.forEach(([a, b]) => line(a, b));
  context.putImageData(image, 0, 0);
}
let waiting = false;
const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
const place = () => { slider.value = ((turn * 180 / Math.PI) % 360 + 360) % 360; later(); };
const stop = () => { clearInterval(timer); timer = null; button.textContent = 'Turn'; };
const start = () => { button.textContent = 'Stop'; timer = setInterval(() => { turn += 0.035; place(); }, 50); };
button.addEventListener('click', () => timer ? stop() : start());
slider.addEventListener('input', () => { stop(); turn = slider.value * Math.PI / 180; later(); });
canvas.addEventListener('pointerdown', (e) => { stop(); canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener('pointermove', (e) => {
  if (!e.buttons) return;
  turn -= e.movementX * 0.01; tilt = Math.max(-1.57, Math.min(1.57, tilt + e.movementY * 0.01)); place();
});
canvas.addEventListener('wheel', (e) => { e.preventDefault(); zoom *= Math.exp(-e.deltaY * 0.001); later(); });
canvas.addEventListener('keydown', (e) => {
  const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[e.key];
  if (step) { e.preventDefault(); stop(); turn += step[0]; tilt += step[1]; place(); }
  if (e.key === '+' || e.key === '-') { zoom *= e.key === '+' ? 1.15 : 1 / 1.15; later(); }
});
box.querySelector('.controls').hidden = false;
place();
if ('IntersectionObserver' in window && !matchMedia('(prefers-reduced-motion: reduce)').matches) {
  let seen = false;
  new IntersectionObserver((entries) => {
    if (entries[0].isIntersecting && !seen) { seen = true; start(); }
    else if (!entries[0].isIntersecting && timer) stop();
  }).observe(canvas);
}
"""


def turning_view(
    name: str, image: Image, *, caption: str = "", max_faces: int = MAX_FACES, threshold: float | None = None
) -> Widget | None:
    """Surfaces of a label volume or mask as a view that turns by itself, slider, mouse or arrow keys.

    Args:
        name: distinct in the page.
        image: axes `ZYX`, lazy or not: labels (0 = background; colours tell neighbours apart) or a mask; grey values
            with `threshold`. Read once, in slabs, onto a grid of at most 112^3 cells.
        caption: below it.
        max_faces: triangles kept; the grid gets coarser until they fit.
        threshold: object = greater than this.

    Returns:
        The widget, or None when there is nothing to show.
    """
    cells = _GRID
    filled, labels, step = _on_grid(image, cells, threshold)
    while True:
        if not filled.any():
            return None
        padded = np.pad(filled, 1)
        points, faces, _, _ = measure.marching_cubes(padded, 0.5)
        if len(faces) <= max_faces:
            break
        cells = max(8, int(cells * math.sqrt(max_faces / len(faces)) * 0.95))
        filled, labels, step = _on_grid(image, cells, threshold)
    points = points - 0.5  # the first cell reaches from 0 to 1
    size = np.array(image.shape) * (image.pixel_size.size if image.pixel_size is not None else (1, 1, 1))
    cell = np.clip(np.floor(points[faces].mean(axis=1)).astype(int), 0, np.array(filled.shape) - 1)
    points = np.clip(points * step / image.shape, 0, 1)  # the last cells may be cut
    colors = _face_labels(labels, cell) * 5 % len(PALETTE)
    order = np.argsort(faces[:, 0], kind="stable")
    mesh = _pack(points, faces[order], colors[order])
    mesh.update(size=(size / size.max()).tolist(), palette=PALETTE.tolist())
    ident = "turning-" + re.sub(r"[^0-9A-Za-z_-]", "-", name)
    unit = "px" if image.pixel_size is None else unit_text(image.pixel_size.unit)
    extent = " \u00d7 ".join(f"{length:.4g}" for length in size)
    note = f"Box: {extent} {unit} (z, y, x). Drag, wheel and arrow keys move it."
    markup = (
        f'<style>{_STYLE}</style><div class="turning" id="{ident}"><canvas width="{_SIDE}" height="{_SIDE}" '
        f'tabindex="0" role="img" aria-label="{html.escape(caption or name, quote=True)}"></canvas>'
        f'<div class="controls" hidden><button type="button">Turn</button>'
        f'<input type="range" min="0" max="360" value="34" aria-label="Angle"></div></div>'
    )
    script = _SCRIPT.replace("NAME", json.dumps(ident)).replace("DATA", json.dumps(mesh))
    return Widget(markup, script, f"{caption} {note}".strip())


def _on_grid(image: Image, cells: int, threshold: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Filled share and one label per cell of a grid of at most `cells` cells per axis; voxels per cell and axis."""
    step = np.maximum(1, -(-np.array(image.shape) // cells))
    if image.pixel_size is not None:  # cells about as deep as wide
        edge = (step * image.pixel_size.size).max()
        step = np.maximum(1, np.floor(edge / np.array(image.pixel_size.size)).astype(int))
    counts = -(-np.array(image.shape) // step)
    filled, labels = np.zeros(counts, np.float32), np.zeros(counts, np.int64)
    depth, height = (int(max(1, n // s) * s) for n, s in zip((64, 256), step[:2], strict=True))
    for z in range(0, image.shape[0], depth):
        for y in range(0, image.shape[1], height):
            block = np.asarray(image.data[z : z + depth, y : y + height])
            cell = tuple(
                slice(o // s, o // s + -(-n // s)) for o, n, s in zip((z, y, 0), block.shape, step, strict=True)
            )
            share = (block > (0 if threshold is None else threshold)).astype(np.float32)
            starts = [np.arange(0, n, s) for n, s in zip(block.shape, step, strict=True)]
            for axis in range(3):
                share = np.add.reduceat(share, starts[axis], axis=axis)
            whole = [np.diff(np.append(first, n)) for first, n in zip(starts, block.shape, strict=True)]
            filled[cell] = share / (whole[0][:, None, None] * whole[1][:, None] * whole[2])
            if block.dtype.kind in "ui" and threshold is None:
                middle = [np.minimum(f + s // 2, n - 1) for f, s, n in zip(starts, step, block.shape, strict=True)]
                labels[cell] = block[np.ix_(*middle)]
    return filled, labels, step


def _face_labels(labels: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Label of the filled cell nearest to every face (the largest in its surroundings of 3^3 cells)."""
    padded = np.pad(labels, 1)
    found = padded[tuple((cell + 1).T)]
    for shift in np.ndindex(3, 3, 3):
        other = padded[tuple((cell + np.array(shift)).T)]
        found = np.where(found == 0, other, found)
    return found


def _pack(points: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> dict[str, Any]:
    """The mesh as base64: corners as uint16, faces as uint16 counted from the first corner of their part."""
    parts, index = [], np.empty_like(faces)
    start = 0
    while start < len(faces):
        base = int(faces[start:].min())
        fits = faces[start:].max(axis=1) - base < 65536
        stop = start + (len(fits) if fits.all() else int(np.argmin(fits)))
        base = int(faces[start:stop].min())
        index[start:stop] = faces[start:stop] - base
        parts.append([base, stop])
        start = stop
    return {
        "points": _base64(np.rint(points * 65535).astype("<u2")),
        "faces": _base64(index.astype("<u2")),
        "colors": _base64(colors.astype(np.uint8)),
        "parts": parts,
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
