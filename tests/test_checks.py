"""The wording of errors."""

import numpy as np
import pytest

from keras_microseg.checks import (
    FileError,
    MissingPackageError,
    UserError,
    check_choice,
    check_number,
    deprecated_argument,
    format_bytes,
    parse_bytes,
    standardize_tuple,
)


def test_file_error_names_the_file_first():
    error = FileError("a.tif", "is empty.", "Copy it again.")
    assert str(error) == "a.tif: is empty. Copy it again." and error.path == "a.tif"
    assert isinstance(error, UserError) and isinstance(error, ValueError)


def test_missing_package_gives_the_command():
    assert "pip install zarr" in str(MissingPackageError("zarr", "Reading Zarr"))
    error = MissingPackageError("jax", "Training", "jax")
    assert 'pip install "keras_microseg[jax]"' in str(error) and isinstance(error, ImportError)


def test_check_choice():
    assert check_choice("method", "a", ("a", "b")) == "a"
    with pytest.raises(UserError, match=r"`method` must be one of 'a', 'b'. Received: method='c'"):
        check_choice("method", "c", ("a", "b"))


@pytest.mark.parametrize("value", [0, 5, 2.5, np.float32(1), np.int64(3)])
def test_check_number_accepts(value):
    assert check_number("x", value, minimum=0, maximum=5) == value


@pytest.mark.parametrize("value", [-1, 6, np.nan, np.inf, "3", None, True, [1]])
def test_check_number_refuses(value):
    with pytest.raises(UserError, match="`x` must be a number >= 0 and <= 5. Received: x="):
        check_number("x", value, minimum=0, maximum=5)


def test_check_number_limits_and_whole_numbers():
    with pytest.raises(UserError, match="> 0"):
        check_number("x", 0, minimum=0, exclusive=True)
    with pytest.raises(UserError, match="< 1"):
        check_number("x", 1, maximum=1, exclusive=True)
    assert check_number("x", 3.0, integer=True) == 3 and isinstance(check_number("x", 3.0, integer=True), int)
    with pytest.raises(UserError, match="whole number"):
        check_number("x", 2.5, integer=True)


def test_standardize_tuple():
    assert standardize_tuple(3, 2, "tile") == (3, 3)
    assert standardize_tuple([np.int32(3), 4], 2, "tile") == (3, 4)
    assert standardize_tuple((-1, 0), 2, "tile", minimum=None) == (-1, 0)
    for bad in ((1, 2, 3), 2.5, 0, (True, 1), (1, -1)):
        with pytest.raises(UserError, match="Received: tile="):
            standardize_tuple(bad, 2, "tile")


def test_deprecated_argument():
    @deprecated_argument("old", "new", since="1.0", removed_in="1.2")
    def function(*, new=1):
        return new

    with pytest.warns(FutureWarning, match="`old` is called `new` since version 1.0"):
        assert function(old=5) == 5
    assert function(new=4) == 4
    with pytest.raises(UserError, match="not both"):
        function(old=1, new=2)


def test_bytes():
    assert parse_bytes("4GB") == 4 * 10**9 and parse_bytes("1.5 MiB") == 1.5 * 2**20 and parse_bytes(700) == 700
    assert parse_bytes("64k") == 64_000 and format_bytes(4_200_000_000) == "4.2 GB" and format_bytes(3) == "3 B"
    for wrong in ("much", "-3GB", "0", "3 XB", "iB"):
        with pytest.raises(UserError, match="max_ram"):
            parse_bytes(wrong)
