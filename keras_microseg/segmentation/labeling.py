"""From maps and masks to instance labels: thresholds, components, watershed, clean-up, connectivity.

Label images are int32 with 0 = background; every function returns a new array. Unless a docstring says 2D, volumes are
accepted too; connectivity 4 then means the 6 face neighbours and 8 all 26.
"""

from __future__ import annotations

import heapq

import numpy as np
from scipy import ndimage
from skimage import feature, filters, segmentation

from keras_microseg.checks import UserError, check_choice, check_number

_FLOAT_BINS = 8192


def threshold_value(image: np.ndarray, method: str | float = "otsu") -> float:
    """Threshold of an image; object = greater than it.

    Args:
        image: any shape and numeric dtype; values that are not finite are left out.
        method: `"otsu"` (Otsu 1979: least variance within the classes), `"li"` (Li and Tam 1998: least cross entropy)
            or a number, which is returned.

    Returns:
        The threshold; the common value when all values are equal, NaN when none is finite.
    """
    if not isinstance(method, str):
        return float(check_number("threshold", method))
    check_choice("threshold", method, ("otsu", "li"))
    values = np.asarray(image).ravel()
    if not np.issubdtype(values.dtype, np.integer):
        values = values[np.isfinite(values)]
    if not values.size:
        return float("nan")
    low, high = values.min(), values.max()
    if low == high:
        return float(low)
    if method == "otsu":
        return float(filters.threshold_otsu(values))
    return _li_threshold(values, low, high)


def _li_threshold(values: np.ndarray, low: float, high: float) -> float:
    """Li's iteration on a histogram with exact sums per bin; agrees with an iteration over all values to one bin."""
    span = float(high) - float(low)
    if np.issubdtype(values.dtype, np.integer) and span < 65536:
        counts = np.bincount(values.astype(np.int64) - int(low))
        levels = np.arange(len(counts), dtype=np.float64)
        sums, step = counts * levels, 1.0
    else:
        shifted, step = values.astype(np.float64) - float(low), span / _FLOAT_BINS
        bins = np.minimum((shifted / step).astype(np.int64), _FLOAT_BINS - 1)
        counts = np.bincount(bins, minlength=_FLOAT_BINS)
        sums = np.bincount(bins, weights=shifted, minlength=_FLOAT_BINS)
        levels = np.arange(1, _FLOAT_BINS + 1) * step
    count_below, sum_below = np.cumsum(counts), np.cumsum(sums)
    threshold = sum_below[-1] / count_below[-1]
    for _ in range(1000):
        split = int(np.searchsorted(levels, threshold, side="right")) - 1
        if split < 0 or sum_below[split] <= 0 or count_below[split] == count_below[-1]:
            break
        below = sum_below[split] / count_below[split]
        above = (sum_below[-1] - sum_below[split]) / (count_below[-1] - count_below[split])
        previous, threshold = threshold, (above - below) / (np.log(above) - np.log(below))
        if abs(threshold - previous) < step / 4:
            break
    return float(threshold + float(low))


def label_components(mask: np.ndarray, connectivity: int = 4) -> np.ndarray:
    """Number the connected components of a mask.

    Args:
        mask: 2D or 3D; non-zero = object.
        connectivity: 4 (shared edge; in 3D shared face) or 8 (corners as well).

    Returns:
        int32 labels 1..n in the order in which a row-by-row scan meets them.
    """
    return ndimage.label(np.asarray(mask) != 0, _structure(np.ndim(mask), connectivity), output=np.int32)[0]


def distance_to_background(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance of every object pixel to the nearest background pixel, float32.

    The outside of the image is not background (as in scipy). Equal to `scipy.ndimage.distance_transform_edt`, but
    computed inside the bounding box of each 8-connected component: the nearest background pixel always touches it.
    """
    components = label_components(mask, 8)
    distance = np.zeros(components.shape, np.float32)
    if not distance.size:
        return distance
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        box = _grown(box, components.shape, 1)
        inside = components[box] == number
        if inside.all():  # no background anywhere: scipy's answer would depend on undefined indices
            distance[box] = max(components.shape)
        else:
            distance[box][inside] = ndimage.distance_transform_edt(inside)[inside]
    return distance


def find_peaks(
    image: np.ndarray,
    min_distance: int,
    *,
    mask: np.ndarray | None = None,
    border: int = 0,
    threshold: float | None = None,
) -> np.ndarray:
    """Seeds at local maxima.

    A pixel is a seed when it is the largest in the (2 min_distance + 1) square window about it; of equal maxima closer
    than `min_distance` one is kept.

    Args:
        image: float array.
        min_distance: half width of the window, pixels (Chebyshev distance).
        mask: seeds outside are dropped; they still suppress weaker ones.
        border: seeds closer than this to the frame are dropped.
        threshold: seeds must be greater; default the smallest value of the image.

    Returns:
        int32 array, seeds numbered 1..n by falling value, 0 elsewhere.
    """
    min_distance = check_number("min_distance", min_distance, minimum=1, integer=True)
    seeds = np.zeros(image.shape, np.int32)
    if not image.size:
        return seeds
    peaks = feature.peak_local_max(image, min_distance=min_distance, threshold_abs=threshold, exclude_border=border)
    if mask is not None:
        peaks = peaks[np.asarray(mask)[tuple(peaks.T)] != 0]
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return seeds


def seeded_watershed(
    landscape: np.ndarray,
    seeds: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    connectivity: int = 8,
    draw_lines: bool = False,
    keep_unseeded: bool = False,
) -> np.ndarray:
    """Flood `landscape` from the seeds, lowest pixels first, inside `mask`.

    Same labels as `skimage.segmentation.watershed`; components of the mask with a single seed are filled without
    flooding, so only touching objects cost time.

    Args:
        landscape: numeric, low inside objects (a negated distance or probability).
        seeds: integers of the same shape, 0 = none; labels of the result.
        mask: non-zero = may be flooded; None = everywhere.
        connectivity: 4 or 8, of the flooding.
        draw_lines: leave one-pixel lines of background between basins.
        keep_unseeded: components of the mask without any seed get labels of their own instead of vanishing.

    Returns:
        int32 labels.
    """
    landscape, seeds = np.asarray(landscape), np.asarray(seeds, np.int32)
    if landscape.shape != seeds.shape or (mask is not None and np.shape(mask) != seeds.shape):
        raise UserError(
            f"`landscape`, `seeds` and `mask` must have one shape. Received: {landscape.shape}, {seeds.shape}, "
            f"{None if mask is None else np.shape(mask)}"
        )
    mask = np.ones(seeds.shape, bool) if mask is None else np.asarray(mask) != 0
    components = label_components(mask, connectivity)
    positions = np.flatnonzero((seeds != 0) & mask)
    component_of_seed, seed_labels = components.ravel()[positions], seeds.ravel()[positions]
    lowest = np.full(components.max(initial=0) + 1, np.iinfo(np.int32).max)
    highest = np.zeros(len(lowest), np.int32)
    np.minimum.at(lowest, component_of_seed, seed_labels)
    np.maximum.at(highest, component_of_seed, seed_labels)
    label_of_component = np.where(lowest == highest, highest, 0).astype(np.int32)
    if keep_unseeded:
        unseeded = np.flatnonzero(highest[1:] == 0) + 1
        label_of_component[unseeded] = seeds.max(initial=0) + np.arange(1, len(unseeded) + 1)
    labels = label_of_component[components]
    shared = highest > lowest
    if shared.any():
        contested = shared[components]
        box = _bounding_box(contested)
        inside = contested[box]
        marked = np.where(inside, seeds[box], 0)
        structure = _structure(seeds.ndim, connectivity)
        if draw_lines:
            flooded = _flood_with_lines(landscape[box], marked, inside, structure)
        else:
            flooded = segmentation.watershed(landscape[box], marked, structure, mask=inside)
        labels[box][inside] = flooded[inside]
    return labels


def split_by_distance(
    mask: np.ndarray,
    min_distance: int = 9,
    *,
    sigma: float = 1.0,
    border: int | None = 0,
    connectivity: int = 8,
    draw_lines: bool = False,
    keep_unseeded: bool = True,
) -> np.ndarray:
    """Cut touching objects of a 2D mask at their necks: watershed of the negated, smoothed distance to background.

    Args:
        mask: 2D, non-zero = object.
        min_distance: half width of the window in which only the highest peak of the distance becomes a seed, pixels.
        sigma: Gaussian smoothing of the distance, pixels.
        border: peaks closer than this to the frame are dropped; None = `min_distance`.
        connectivity: of the flooding.
        draw_lines: leave one-pixel lines between the parts.
        keep_unseeded: components in which no peak survives stay one object; otherwise they vanish.

    Returns:
        int32 labels.

    The source system drops peaks at the frame and objects without a peak; see `split_as_published`.
    """
    if np.ndim(mask) != 2:
        raise UserError(f"`mask` must be 2D. Received: shape {np.shape(mask)}")
    distance = distance_to_background(mask)
    if sigma > 0:
        distance = ndimage.gaussian_filter(distance, sigma)
    seeds = find_peaks(distance, min_distance, mask=mask, border=min_distance if border is None else border)
    return seeded_watershed(
        -distance, seeds, mask, connectivity=connectivity, draw_lines=draw_lines, keep_unseeded=keep_unseeded
    )


def split_as_published(mask: np.ndarray, *, min_distance: int = 9, archive: bool = False) -> np.ndarray:
    """Separate particles as the source system does; the result is a mask, not labels.

    Distance, Gaussian 1 px, peaks at least `min_distance` px apart and as far from the frame, watershed with lines,
    regions without a peak vanish, `separate_8_to_4` last. Release 1.2.0 floods 8-connected; the scripts of the
    publication (`archive`) flood 4-connected and then fill holes with a 3 x 3 structure.

    Returns:
        Boolean (H, W) mask; particles are its 4-connected components.
    """
    labels = split_by_distance(
        mask,
        min_distance,
        border=None,
        connectivity=4 if archive else 8,
        draw_lines=True,
        keep_unseeded=False,
    )
    separated = labels > 0
    if archive:
        separated = ndimage.binary_fill_holes(separated, np.ones((3, 3), bool))
    return separate_8_to_4(separated)


def remove_small(labels: np.ndarray, min_area: float) -> np.ndarray:
    """Labels without the objects of fewer than `min_area` pixels (voxels); other ids stay."""
    ids, index, areas = _ids_and_areas(labels)
    kept = np.where(areas >= min_area, ids, 0).astype(np.int32)
    return kept[index]


def remove_labels(labels: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """Labels without the objects whose ids are listed in `unwanted`."""
    ids, index, _ = _ids_and_areas(labels)
    return np.where(np.isin(ids, unwanted), 0, ids).astype(np.int32)[index]


def relabel_sequential(labels: np.ndarray) -> np.ndarray:
    """The same objects with ids 1..n in the order of their old ids, int32."""
    ids, index, areas = _ids_and_areas(labels)
    present = (areas > 0) & (ids != 0)
    return np.where(present, np.cumsum(present), 0).astype(np.int32)[index]


def touches_border(labels: np.ndarray) -> np.ndarray:
    """Ascending ids of the objects with a pixel in the outermost row, column or plane of the array."""
    labels = np.asarray(labels)
    faces = [np.take(labels, edge, axis).ravel() for axis in range(labels.ndim) for edge in (0, -1) if labels.size]
    ids = np.unique(np.concatenate(faces)) if faces else np.zeros(0, np.int64)
    return ids[ids != 0]


def fill_holes(labels: np.ndarray, max_area: float | None = None) -> np.ndarray:
    """Give each hole to the object around it.

    A hole is a 4-connected (6-connected in 3D) background region off the frame whose neighbours all belong to one
    object. Gaps between two objects stay.

    Args:
        labels: label image.
        max_area: larger holes stay open; None = no limit.
    """
    labels = np.asarray(labels)
    regions = label_components(labels == 0, 4)
    num_regions = int(regions.max(initial=0))
    lowest = np.full(num_regions + 1, np.iinfo(np.int64).max)
    highest = np.zeros(num_regions + 1, np.int64)
    for axis in range(labels.ndim):
        here, there = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        region_here, region_there = np.moveaxis(regions, axis, 0)[:-1], np.moveaxis(regions, axis, 0)[1:]
        for region, neighbour in ((region_here, there), (region_there, here)):
            edge = (region != 0) & (neighbour != 0)
            np.minimum.at(lowest, region[edge], neighbour[edge])
            np.maximum.at(highest, region[edge], neighbour[edge])
    is_hole = lowest == highest
    is_hole[touches_border(regions)] = False
    if max_area is not None:
        is_hole &= np.bincount(regions.ravel(), minlength=num_regions + 1) <= max_area
    return np.where(labels != 0, labels, np.where(is_hole, highest, 0)[regions]).astype(np.int32)


def separate_8_to_4(mask: np.ndarray) -> np.ndarray:
    """Widen background lines that touch by corners only, so that 8-connected tracing keeps particles apart.

    Every 2 x 2 window is visited row by row. Where background touches by the main diagonal only, the lower left object
    pixel is cleared; by the other diagonal, the upper left one. A change never reaches a later window of the same row,
    so whole rows are done at once with the result of the scan.

    Args:
        mask: (H, W), non-zero = object.

    Returns:
        Boolean (H, W) mask.
    """
    result = np.array(np.asarray(mask) != 0)
    if result.ndim != 2:
        raise UserError(f"`mask` must be 2D. Received: shape {result.shape}")
    for upper, lower in zip(result[:-1], result[1:], strict=True):
        top_left, top_right, bottom_left, bottom_right = upper[:-1], upper[1:], lower[:-1], lower[1:]
        diagonal = (top_left == bottom_right) & (top_right == bottom_left) & (top_left != top_right)
        if diagonal.any():
            main = diagonal & top_right
            bottom_left &= ~main
            top_left &= ~(diagonal ^ main)
    return result


def cut_touching(labels: np.ndarray) -> np.ndarray:
    """0/255 mask of a label image in which the 4-connected components are the objects.

    Where two objects share an edge, the pixel of the larger object is cleared (of equal ones, of the higher id). Parts
    that fall off an object are cleared as well, so objects and components correspond one to one; an object vanishes
    only when every one of its pixels touches a smaller object.

    Args:
        labels: (H, W) or (D, H, W) label image.

    Returns:
        uint8 mask of the same shape.
    """
    labels = np.asarray(labels)
    if not labels.size:
        return np.zeros(labels.shape, np.uint8)
    _, index, areas = _ids_and_areas(labels)
    rank = np.empty(len(areas), np.int64)
    rank[np.argsort(areas, kind="stable")] = np.arange(len(areas))
    rank = rank[index]
    keep = labels != 0
    for axis in range(labels.ndim):
        view = [np.moveaxis(array, axis, 0) for array in (labels, rank, keep)]
        (here, there), (rank_here, rank_there), (keep_here, keep_there) = ((v[:-1], v[1:]) for v in view)
        contact = (here != there) & (here != 0) & (there != 0)
        keep_here &= ~(contact & (rank_here > rank_there))
        keep_there &= ~(contact & (rank_there > rank_here))
    components = label_components(keep, 4)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    owner = np.zeros(len(sizes), np.int64)
    owner[components.ravel()] = index.ravel()
    largest_first = np.lexsort((np.arange(len(sizes)), -sizes, owner))
    largest_first = largest_first[sizes[largest_first] > 0]
    chosen = np.zeros(len(sizes), bool)
    chosen[largest_first[np.unique(owner[largest_first], return_index=True)[1]]] = True
    return np.where(chosen[components], 255, 0).astype(np.uint8)


def _flood_with_lines(landscape: np.ndarray, seeds: np.ndarray, mask: np.ndarray, structure: np.ndarray) -> np.ndarray:
    """Watershed in which a pixel reached when it already has neighbours of another basin becomes a line.

    Same result as `skimage.segmentation.watershed(..., watershed_line=True)`, whose time grows without bound on large
    clumps because every line pixel queues its neighbours again each time it is met.
    """
    width = [(1, 1)] * seeds.ndim
    shape = tuple(size + 2 for size in seeds.shape)
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(seeds.ndim)]
    steps = np.argwhere(structure) - 1
    steps = steps[np.argsort((steps**2).sum(axis=1), kind="stable")][1:]
    offsets = (steps @ strides).tolist()
    values = np.pad(landscape, width).astype(np.float64).ravel().tolist()
    labels = np.pad(seeds, width).ravel().tolist()
    waiting = (np.pad(mask, width).ravel() & (np.pad(seeds, width).ravel() == 0)).tolist()
    positions = np.flatnonzero(np.pad(seeds, width)).tolist()
    heap = [(values[index], 0, index, labels[index]) for index in positions]
    heapq.heapify(heap)
    age = 0
    while heap:
        value, _, index, label = heapq.heappop(heap)
        if all(labels[index + offset] in (0, label) for offset in offsets):
            labels[index] = label
        for offset in offsets:
            neighbour = index + offset
            if waiting[neighbour]:
                waiting[neighbour] = False
                age += 1
                heapq.heappush(heap, (max(values[neighbour], value), age, neighbour, label))
    inner = tuple(slice(1, -1) for _ in shape)
    return np.array(labels, np.int32).reshape(shape)[inner]


def _structure(ndim: int, connectivity: int) -> np.ndarray:
    check_choice("connectivity", connectivity, (4, 8))
    return ndimage.generate_binary_structure(ndim, 1 if connectivity == 4 else ndim)


def _grown(box: tuple[slice, ...], shape: tuple[int, ...], margin: int) -> tuple[slice, ...]:
    """`box` enlarged by `margin` on all sides, inside an array of `shape`."""
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, size)) for s, size in zip(box, shape, strict=True)
    )


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around the True pixels of a mask that has some."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def _ids_and_areas(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, per pixel the index into them, and pixels per id (0 for the background and for unused ids).

    Dense ids index themselves; only sparse ones (much larger than the number of pixels) are sorted.
    """
    labels = np.asarray(labels)
    if labels.dtype == bool or not np.issubdtype(labels.dtype, np.integer):
        labels = labels.astype(np.int32)
    largest = int(labels.max(initial=0))
    if labels.min(initial=0) < 0 or largest > np.iinfo(np.int32).max:
        raise UserError("`labels` must lie between 0 and 2147483647.")
    if largest <= labels.size + 65536:
        ids, index = np.arange(largest + 1), labels
    else:
        ids, index = np.unique(labels, return_inverse=True)
        index = index.reshape(labels.shape)
    areas = np.bincount(index.ravel(), minlength=len(ids))
    areas[ids == 0] = 0
    return ids, index, areas
