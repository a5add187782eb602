"""Frames of video files (MP4, AVI, MOV, ...) through the optional package `av`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, MissingPackageError
from keras_microseg.image import LazyArray
from keras_microseg.io.sources import reading

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg", ".m4v", ".webm")


class VideoFrames(LazyArray):
    """Grey frames of a video file: (N, H, W) uint8, decoded in order, from the start when an earlier one is asked for.

    Args:
        path: the file.
        shape: (frames, height, width).
    """

    def __init__(self, path: str, shape: tuple[int, int, int]):
        self.path, self.shape, self.dtype = path, shape, np.dtype(np.uint8)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], np.uint8)
        wanted = range(block[0].start, block[0].stop)
        with reading(self.path), _av().open(self.path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number >= wanted.stop:
                    break
                if number in wanted:
                    out[number - wanted.start] = frame.to_ndarray(format="gray")[block[1:]]
        return out


def open_video(path: str | os.PathLike) -> tuple[VideoFrames, float | None]:
    """Frames of a video file, unread, and its frame rate per second (None when the file does not say).

    The frames are counted by decoding once: the number in the header is often wrong.

    Raises:
        MissingPackageError: the package `av` is not installed.
        FileError: damaged file, or one without a picture.
    """
    path = str(path)
    with reading(path), _av().open(path) as container:
        if not container.streams.video:
            raise FileError(path, "holds no video.", "Is it the right file?")
        stream = container.streams.video[0]
        rate = float(stream.average_rate) if stream.average_rate else None
        count, shape = 0, (0, 0)
        for frame in container.decode(stream):
            count, shape = count + 1, (frame.height, frame.width)
    if not count:
        raise FileError(path, "holds no frame.", "Export the video again.")
    return VideoFrames(path, (count, *shape)), rate


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("av", "Reading video files", extra="video") from error
    return av
