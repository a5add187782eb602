"""Which files are meant, and writing all or nothing."""

import errno
import os
import stat

import numpy as np
import pytest

from keras_microseg.checks import FileError, UserError
from keras_microseg.io import atomic_path, find_images, natural_key, write_image, write_labels, write_table


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


def test_natural_order():
    names = ["img10.tif", "img2.tif", "Img1.tif", "img02b.tif", "a.tif"]
    assert sorted(names, key=natural_key) == ["a.tif", "Img1.tif", "img2.tif", "img02b.tif", "img10.tif"]


def test_find_in_folders_files_and_patterns(tmp_path):
    touch(tmp_path, "b10.TIF", "b9.png", ".hidden.tif", "notes.txt", "sub/c.tif", "z.zarr/zarr.json")
    assert [p.name for p in find_images(tmp_path)] == ["b9.png", "b10.TIF", "z.zarr"]
    assert [p.name for p in find_images(tmp_path, recursive=True)] == ["b9.png", "b10.TIF", "c.tif", "z.zarr"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert [p.name for p in find_images(str(tmp_path / "b*"))] == ["b9.png", "b10.TIF"]
    assert [p.name for p in find_images([tmp_path / "b10.TIF", tmp_path])] == ["b10.TIF", "b9.png", "z.zarr"]


def test_nothing_found(tmp_path):
    touch(tmp_path, "notes.txt", "sub/c.tif")
    with pytest.raises(FileError, match="no image in this folder. Sub-folders are not searched"):
        find_images(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        find_images(tmp_path / "gone")
    with pytest.raises(FileError, match="matches this pattern"):
        find_images(str(tmp_path / "*.tif"))
    with pytest.raises(UserError, match="No image was given"):
        find_images([])


def test_atomic_path_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "one"
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "one" and leftovers(tmp_path) == []
    with pytest.raises(FileError, match="nothing was written"), atomic_path(path):
        pass


def test_atomic_folder(tmp_path):
    with atomic_path(tmp_path / "a.zarr") as temporary:
        temporary.mkdir()
        (temporary / "zarr.json").write_text("{}")
    assert (tmp_path / "a.zarr" / "zarr.json").exists()
    (tmp_path / "folder").mkdir()
    touch(tmp_path, "folder/precious")
    with pytest.raises(FileError, match="is a folder"), atomic_path(tmp_path / "folder") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "folder" / "precious").exists() and leftovers(tmp_path) == []


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "the disk is read-only"),
    ],
)
def test_system_errors_become_advice(tmp_path, code, words):
    with pytest.raises(FileError, match=f"a.tif: {words}"), atomic_path(tmp_path / "a.tif") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path):
    touch(tmp_path, "in/source")
    with pytest.raises(PermissionError), atomic_path(tmp_path / "out.tif"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "in" / "source"))


def test_unwritable_output(tmp_path):
    touch(tmp_path, "file")
    with pytest.raises(FileError, match="a file|is a file"):
        write_image(tmp_path / "file" / "a.tif", np.zeros((4, 4), np.uint8))
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(FileError, match="no permission"):
            write_image(tmp_path / "locked" / "a.tif", np.zeros((4, 4), np.uint8))


def write_everything(folder):
    import pandas

    noise = np.random.default_rng(0).integers(0, 60000, (300, 300))
    table = pandas.DataFrame(noise.astype(float))
    yield "a.tif", lambda: write_image(folder / "a.tif", noise.astype(np.uint16))
    yield "b.png", lambda: write_image(folder / "b.png", noise.astype(np.uint16))
    yield "c.npy", lambda: write_image(folder / "c.npy", noise)
    yield "d.tif", lambda: write_labels(folder / "d.tif", noise)
    yield "e.csv", lambda: write_table(folder / "e.csv", table, facts={})
    yield "f.xlsx", lambda: write_table(folder / "f.xlsx", table, facts={})


def test_writers_that_hit_the_end_of_the_disk_leave_nothing(tmp_path):
    """A real failing write: the system stops files at 50 kB."""
    resource = pytest.importorskip("resource")
    writers = list(write_everything(tmp_path))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in writers:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
        try:
            with pytest.raises(FileError) as error:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert str(error.value).startswith(str(tmp_path / name)), name
        assert list(tmp_path.iterdir()) == [], name
