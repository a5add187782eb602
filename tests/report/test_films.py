"""Film strips: every frame once, chosen without a script too, text of users escaped."""

import re

import numpy as np

from keras_microseg.report.filament_figures import overlay_layer
from keras_microseg.report.films import MAX_SIDE, FilmFrame, choose_frames, film_strip
from keras_microseg.report.page import Section, write_page


def frames(count, shape=(30, 40)):
    layer = np.zeros((*shape, 4), np.uint8)
    layer[5, 5:9] = (255, 0, 0, 255)
    picture = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    return [FilmFrame(picture, layer if i else None, str(i), f"t = {i} <s>") for i in range(count)]


def test_a_film_holds_every_frame_and_works_without_a_script(tmp_path):
    widget = film_strip("a b/1", frames(4), caption="x < y", legend="Outlines")
    radios = re.findall(r'<input type="radio" name="([^"]+)" id="([^"]+)"( checked)?', widget.markup)
    assert [r[1] for r in radios] == [f"film-a-b-1-{i}" for i in range(4)]
    assert [bool(r[2]) for r in radios] == [True, False, False, False]
    assert widget.markup.count("<label for=") == 4 and widget.markup.count('class="outlines') == 3
    assert "t = 1 &lt;s&gt;" in widget.markup and '"film-a-b-1"' in widget.script
    text = write_page(tmp_path / "p.html", "Films", [Section("A", [widget])]).read_text(encoding="utf-8")
    assert "x &lt; y" in text and not re.search(r'(src|href)="(?!data:|#)', text)


def test_large_frames_are_reduced():
    widget = film_strip("big", frames(1, (MAX_SIDE + 300, 2 * MAX_SIDE)))
    assert len(widget.markup) < 3_000_000 and "pixelated" not in widget.markup.split("</style>")[1]


def test_long_films_are_thinned():
    assert choose_frames(5).tolist() == [0, 1, 2, 3, 4]
    chosen = choose_frames(1000, 80)
    assert len(chosen) == 80 and chosen[0] == 0 and chosen[-1] == 999


def test_errors_are_painted_against_the_truth():
    mask, truth = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    mask[5:15, 5:15] = truth[5:15, 8:18] = True
    layer = overlay_layer({"A1": mask, "A2": mask & truth}, {"A1": truth})
    assert layer[10, 6, 3] == 150 and layer[10, 16, 3] == 150  # false carbon, missed carbon
    assert tuple(layer[10, 6, :3]) != tuple(layer[10, 16, :3])
    assert layer[5, 6, 3] == 255 and layer[10, 11, 3] == 0
    assert not overlay_layer({"A1": np.zeros((9, 9), bool)}).any()
