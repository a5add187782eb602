"""Image access: lazy reading with pixel size, label images, tables, and writing that leaves nothing half-written.

Readers of single formats are imported when a file needs them; this package itself loads in milliseconds.
"""

from keras_microseg.io.files import atomic_path, find_images, is_zarr, natural_key, write_errors
from keras_microseg.io.formats import guess_axes
from keras_microseg.io.images import open_image, read_grey, write_image
from keras_microseg.io.info_bar import find_info_bar
from keras_microseg.io.labels import read_labels, write_labels
from keras_microseg.io.tables import write_table
from keras_microseg.io.volume_writer import VolumeWriter, check_disk_space, create_volume
from keras_microseg.io.volumes import check_voxel_size, open_volume, slice_numbers

__all__ = [
    "VolumeWriter",
    "atomic_path",
    "check_disk_space",
    "check_voxel_size",
    "create_volume",
    "find_images",
    "find_info_bar",
    "guess_axes",
    "is_zarr",
    "natural_key",
    "open_image",
    "open_volume",
    "read_grey",
    "read_labels",
    "slice_numbers",
    "write_errors",
    "write_image",
    "write_labels",
    "write_table",
]
