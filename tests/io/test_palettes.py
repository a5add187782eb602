"""Palettes of mineral maps: the source's 24 colours, merges, unknown colours, broken files."""

import json

import numpy as np
import pytest
from PIL import Image as PillowImage

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.palettes import IGNORE, Palette, read_mineral_map, read_palette


def test_24_colours_become_4_classes(tmp_path):
    palette = read_palette()
    assert len(palette.minerals) == 24
    ids = np.array([m.id for m in palette.minerals], np.uint8).reshape(4, 6)
    PillowImage.fromarray(palette.paint(ids)).save(tmp_path / "map.png")
    found = read_mineral_map(tmp_path / "map.png", palette, image_shape=(4, 6))
    np.testing.assert_array_equal(found.ids, ids)
    assert found.unknown.empty and found.replaced == 0
    names, table = palette.merge_table()
    assert set(names) == {"pores", "quartz", "albite", "clay and accessory"} and palette.groups == names
    merged = table[ids]
    assert [int((merged == k).sum()) for k in range(4)] == [{"clay and accessory": 21}.get(name, 1) for name in names]
    assert len(palette.class_list()) == 23


def test_unknown_colours_are_listed_and_ignored(tmp_path):
    palette = read_palette()
    picture = np.full((8, 10, 3), (255, 192, 192), np.uint8)
    picture[0] = (250, 192, 192)
    picture[1, :3] = (17, 230, 90)
    PillowImage.fromarray(picture).save(tmp_path / "map.png")
    found = read_mineral_map(tmp_path / "map.png", palette)
    assert found.unknown["colour"].tolist() == ["#fac0c0", "#11e65a"]
    assert found.unknown["pixels"].tolist() == [10, 3] and found.unknown["nearest"][0] == "quartz"
    assert (found.ids[0] == IGNORE).all() and (found.ids[1, :3] == IGNORE).all() and found.ids[2, 0] == 23
    near = read_mineral_map(tmp_path / "map.png", palette, tolerance=6)
    assert near.replaced == 10 and (near.ids[0] == 23).all() and near.unknown["pixels"].tolist() == [3]


def test_a_label_of_another_shape(tmp_path):
    PillowImage.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "map.png")
    with pytest.raises(FileError, match="has 5 x 7 pixels, its image 7 x 5"):
        read_mineral_map(tmp_path / "map.png", read_palette(), image_shape=(7, 5))


def test_own_merges():
    palette = Palette(read_palette().minerals[-4:])
    names = [m.name for m in palette.minerals]
    merged, table = palette.merge_table({"a": names[:1], "b": [palette.minerals[1].id], "c": names[2:]})
    assert merged == ("a", "b", "c") and table[[m.id for m in palette.minerals]].tolist() == [0, 1, 2, 2]
    for groups, message in (
        ({"a": names[:3]}, "in no group"),
        ({"a": names, "b": names[:1]}, "more than one group"),
        ({"a": [*names, "gold"]}, "not in the palette"),
    ):
        with pytest.raises(UserError, match=message):
            palette.merge_table(groups)


def test_json_and_csv_agree(tmp_path):
    rows = [
        {"id": 1, "name": "quartz", "colour": [1, 2, 3], "density": 2.65},
        {"id": 2, "name": "clay", "colour": "#040506"},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.csv").write_text("# mine\nid, name, colour, density\n1, quartz, 1 2 3, 2.65\n2, clay, #040506,\n")
    one, other = read_palette(tmp_path / "p.json"), read_palette(tmp_path / "p.csv")
    assert repr(one) == repr(other) and one.minerals[0].density == 2.65


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,name,colour\n1,a,1 2 3\n2,b,1 2 3\n",
            r"colour #010203 occurs more than once in the palette: a \(1\), b \(2\)",
        ),
        ("id,name,colour\n1,a,1 2 3\n1,b,1 2 4\n", "id 1 occurs more than once"),
        ("id,name,colour\n1,a,1 2 3\n2,a,1 2 4\n", "name a occurs more than once"),
        ("id,name,colour\n1,a,1 2 3\n2,b,\n", "entry 2 has no colour"),
        ("id,name\n1,a\n", "entry 1 has no colour"),
        ("id,name,colour\n1,a,bluish\n", "A colour must be"),
        ("id,name,colour\n300,a,1 2 3\n", "id of a"),
        ("id,name,colour\n", "at least one mineral"),
        ("", "is no palette"),
    ],
)
def test_broken_palettes(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(FileError, match=message):
        read_palette(tmp_path / "p.csv")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_palette(tmp_path / "nowhere.csv")
