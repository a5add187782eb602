"""The folders of the label-free particle system this package grew from, so that its projects open as they are."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from keras_microseg.checks import FileError

_FOLDERS = {
    "images": ("Input_Images",),
    "outlines": ("Input_Masks",),
    "tiles": ("2_CycleGAN/data/trainA",),
    "simulated_masks": ("2_CycleGAN/data/trainB",),
    "fake_images": ("2_CycleGAN/generate_images/A",),
    "filtered_masks": ("2_CycleGAN/generate_images/Synthetic_Masks_Filtered",),
    "cyclegan_masks": ("Output_Masks_CycleGAN", "2_CycleGAN/generate_images/Output_Masks_CycleGAN"),
    "masks": ("Output_Masks_UNet",),
}


@dataclasses.dataclass(frozen=True)
class ReferenceFolders:
    """Folders of a project of that system; None = not there.

    Attributes:
        root: the project.
        images: micrographs given.
        outlines: single-particle masks given.
        tiles: tiles of the micrographs.
        simulated_masks: masks of the simulator.
        fake_images: micrographs made of them, same names.
        filtered_masks: simulated masks without the particles that were not painted.
        cyclegan_masks: masks of the micrographs by translation.
        masks: masks of the micrographs by the network; its probabilities are `<stem>_raw.tif` beside them.
    """

    root: Path
    images: Path | None = None
    outlines: Path | None = None
    tiles: Path | None = None
    simulated_masks: Path | None = None
    fake_images: Path | None = None
    filtered_masks: Path | None = None
    cyclegan_masks: Path | None = None
    masks: Path | None = None


def find_reference_folders(root: str | os.PathLike) -> ReferenceFolders | None:
    """The folders of a project that was laid out for the source system.

    Args:
        root: folder that may hold `Input_Images`, `Input_Masks` and what its steps wrote; upper and lower case alike.

    Returns:
        The folders, or None when `root` has no `Input_Images` and no `Input_Masks`.

    Raises:
        FileError: `root` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileError(root, "is not a folder.", "Check the path and the spelling.")
    found = {}
    for name, places in _FOLDERS.items():
        folders = [folder for place in places if (folder := _descend(root, place)) is not None]
        found[name] = folders[0] if folders else None
    if found["images"] is None and found["outlines"] is None:
        return None
    return ReferenceFolders(root, **found)


def resolve_inputs(images: str | os.PathLike, outlines: str | os.PathLike | None = None) -> tuple[Path, Path | None]:
    """Folders of micrographs and of outlines, where `images` may be the root of a project of the source system.

    Args:
        images: files' folder, or a root with `Input_Images` in it.
        outlines: folder of single-particle masks; None = `Input_Masks` of such a root, if it has one.
    """
    path = Path(images)
    layout = find_reference_folders(path) if path.is_dir() else None
    if layout is not None and layout.images is not None:
        return layout.images, Path(outlines) if outlines is not None else layout.outlines
    return path, Path(outlines) if outlines is not None else None


def _descend(root: Path, place: str) -> Path | None:
    for part in place.split("/"):
        matches = [entry for entry in root.iterdir() if entry.is_dir() and entry.name.casefold() == part.casefold()]
        if not matches:
            return None
        root = min(matches, key=lambda entry: (entry.name != part, entry.name))
    return root
