"""The columns of the table of cathode particles: unit, formula, meaning; the form is that of `quantities`.

After the feature set of Li et al. (2022), Science 376, 517, and the detachment of Jiang et al. (2020), Nature
Communications 11, 2310.
"""

from __future__ import annotations

import pandas as pd

from keras_microseg.measurement.quantities import SOLID_QUANTITIES, Quantity, read_quantities

BASE = (
    "volume", "equivalent_diameter", "ellipsoid_major", "ellipsoid_middle", "ellipsoid_minor", "flatness", "centroid_z",
    "centroid_y", "centroid_x", "touches_border", "edge_weight", "axis_z", "axis_y", "axis_x",
)  # fmt: skip
"""Taken from `measure_particles` as they are."""

_TABLE = """
detachment | ratio | D = A_void / (A_void + A_CBD) | Jiang et al. 2020
    degree of detachment: share of the surface over void, among void and carbon/binder, at the main distance
detachment_error | ratio | sqrt(n/(n-1) sum (v_k - D t_k)^2) / T | Cochran 1977
    standard error over 32 patches of the surface (how patchy the cover is, not how true the phase map is)
detachment_low | ratio | D - 1.96 error, at least 0 | Cochran 1977
    lower end of the 95 % interval
detachment_high | ratio | D + 1.96 error, at most 1 | Cochran 1977
    upper end of the 95 % interval
detachment_shell | ratio | D = V_void / (V_void + V_CBD) in S(d) = dilate(V_f, d) - particles | Jiang et al. 2020
    the same by voxels of the shell up to the main distance
contact_share | ratio | shell in other particles / shell | Li et al. 2022
    share of the shell of the contact distance that lies in other particles
surface_seen | ratio | | keras_microseg
    share of the surface whose surroundings lie inside the volume
filled_volume | volume | V_f | Li et al. 2022
    volume of the label closed with a ball and its holes filled
crack_volume | volume | V_c | Li et al. 2022
    volume of cracks and pores inside the filled particle
damage | ratio | V_c / V_f | Li et al. 2022
    degree of damage, also called crack fraction
crack_depth | ratio | mean depth of cracks / greatest depth | keras_microseg
    0 = cracks at the outline, 1 = cracks in the middle; empty without cracks
outer_surface | area | A_o, Crofton | Li et al. 2022
    surface of the filled particle
inner_surface | area | A_i = (A(solid) + A(cracks) - A_o) / 2 | Li et al. 2022
    surface between solid and cracks
outer_roughness | ratio | A after / before a 3D median | Li et al. 2022
    1 = smooth outline, less = rough
inner_roughness | ratio | A after / before a 3D median | Li et al. 2022
    the same of the cracks; empty without cracks
axis_ratio | ratio | longest / shortest axis | Li et al. 2022
    called elongation there; 1 = as long as wide
sphericity | ratio | 36 pi V_f^2 / A_o^3 | Li et al. 2022
    1 = sphere (the cube of Wadell's sphericity)
volume_to_surface | ratio | V_f^(1/3) / A_o^(1/2) | Li et al. 2022
    0.4547 = sphere
yaw | angle | atan2(axis_y, axis_x) | Li et al. 2022
    direction of the longest axis in the plane of the slices, 0..180 from x to y
pitch | angle | asin(axis_z) | Li et al. 2022
    rise of the longest axis out of the plane of the slices, 0..90
roll | angle | | Li et al. 2022
    turn of the middle axis about the longest one, 0..180 from the plane of the slices
coordination_number | count | | keras_microseg
    number of particles this one shares voxel faces with
contact_area | area | per contact the length of the sum of its face vectors | keras_microseg
    area of all contacts with other particles
cluster | count | | keras_microseg
    number of the group of connected particles, 1 = the largest group
packing_density | ratio | particle voxels / voxels of a cube | Li et al. 2022
    in a cube about the centre, of `cube` mean diameters
neighbour_distance | length | mean over 6 nearest | Li et al. 2022
    mean distance of the centres of the nearest particles
std_axis_ratio | ratio | standard deviation over 6 nearest | Li et al. 2022
    scatter of the axis ratio among the nearest particles
std_volume | volume | standard deviation over 6 nearest | Li et al. 2022
    scatter of the volume among the nearest particles
alignment | ratio | mean of abs(cos) over 6 nearest | Li et al. 2022
    0.5 = axes of the nearest particles lie anyhow, 1 = parallel
grey_mean | grey | mean over the solid | Li et al. 2022
    mean grey value of the active material, proportional to the electron density where the volume is
grey_std | grey | | Li et al. 2022
    standard deviation of these grey values
homogeneity | weight | 1 / grey_std | Li et al. 2022
    high = even
collector_depth | length | | keras_microseg
    distance of the centre from the face of the volume at the current collector
size_class | flag | | keras_microseg
    small, medium or large: thirds of the particles by equivalent diameter
group | flag | | keras_microseg
    label given by the user, such as the number of cycles
is_edge | flag | | keras_microseg
    touches the border of the volume (or comes within `border` of it); left out of statistics and plots
"""

CATHODE_QUANTITIES: dict[str, Quantity] = {
    **{name: SOLID_QUANTITIES[name] for name in BASE},
    **read_quantities(_TABLE),
}


def describe_cathode(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Definitions of the columns of `table`: quantity, unit, formula, meaning, reference."""
    known = [CATHODE_QUANTITIES[name] for name in table.columns if name in CATHODE_QUANTITIES]
    rows = [(q.name, q.unit(unit), q.formula, q.meaning, q.reference) for q in known]
    return pd.DataFrame(rows, columns=["quantity", "unit", "formula", "meaning", "reference"])
