"""The quantities of the particle table: name, unit, formula, meaning and reference in one place.

Docstrings, the sheet that explains a table, and the units all come from `QUANTITIES` (images) and `SOLID_QUANTITIES`
(volumes). To add one: a line in the table here and a line in `particles.FORMULAS` or `solids.SOLID_FORMULAS`.

Conventions: a pixel is the square [i, i + 1] x [j, j + 1] of real size s_y x s_x, and a particle is the union of its
squares, so no size is half a pixel short. Lengths are in the unit of the pixel size, positions in pixels of the whole
image with pixel centres at whole numbers. Angles are in degrees from the +x axis, counter-clockwise on the screen,
0 <= angle < 180.

References:
    ISO 13322-1:2014 (static image analysis); ISO 9276-6:2008 (particle shape); Crofton's formula as in Ohser and
    Muecklich (2000), Statistical Analysis of Microstructures in Materials Science; "source": the measuring part of
    BAMresearch/automatic-sem-image-segmentation (Rühle et al. 2021); "ImageJ": its measurement command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pandas as pd

from keras_microseg.checks import UserError


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One column of the particle table.

    Attributes:
        name: column name.
        kind: "length", "area", "volume", "ratio", "angle", "pixel", "count", "flag", "weight" or "grey".
        formula: definition in symbols: A area, P perimeter, x diameters; may be "".
        meaning: the same in words.
        reference: standard or source of the definition.
        is_default: part of the table unless other quantities are asked for.
    """

    name: str
    kind: str
    formula: str
    meaning: str
    reference: str
    is_default: bool = True

    def unit(self, length: str) -> str:
        """Unit of the column when lengths are in `length`; "" for pure numbers."""
        units = {"length": length, "area": f"{length}²", "volume": f"{length}³", "angle": "°", "pixel": "px"}
        units |= {"grey": "grey value"}
        return units.get(self.kind, "")


# name | kind | formula | reference | "on request" or nothing, and the meaning on the next line
_TABLE = """
area | area | A = N s_y s_x | ISO 13322-1
    area of the N pixel squares, holes left out
equivalent_diameter | length | x_A = sqrt(4 A / pi) | ISO 9276-6
    diameter of the disc of equal area
perimeter | length | P = pi/2 sum_k c_k d_k N_k | Ohser and Muecklich 2000
    Crofton perimeter: N_k crossings of the outline (holes too) with grid lines d_k apart in 4 directions of share c_k
feret_min | length | x_Fmin | ISO 13322-1
    least distance of two parallel tangents, exact
feret_max | length | x_Fmax | ISO 13322-1
    greatest distance of two parallel tangents, exact
feret_90 | length | x_F90 | ISO 13322-1
    Feret diameter at right angles to the minimum one (the larger one where several directions tie)
feret_angle | angle | angle of x_Fmax | ImageJ
    direction of the maximum Feret diameter
rectangle_width | length | W_R | source
    short side of the enclosing rectangle of least area
rectangle_length | length | L_R | source
    long side of the enclosing rectangle of least area
rectangle_angle | angle | angle of L_R | source
    direction of the long side of that rectangle
ellipse_major | length | x_Lmax = 4 sqrt(lambda_1) | ISO 9276-6
    major axis of the ellipse of equal second moments, of the pixel squares (Legendre ellipse)
ellipse_minor | length | x_Lmin = 4 sqrt(lambda_2) | ISO 9276-6
    minor axis of that ellipse
ellipse_angle | angle | atan2(2 mu_xy, mu_xx - mu_yy) / 2 | ImageJ
    direction of the major axis; empty when both axes are equal
hull_area | area | A_C | ISO 9276-6
    area of the convex hull of the pixel squares, exact
hull_perimeter | length | P_C | ISO 9276-6
    length of the outline of that hull, exact
aspect_ratio | ratio | x_Fmin / x_Fmax | ISO 9276-6
    1 = equal widths, small = slender
ellipse_ratio | ratio | x_Lmin / x_Lmax | ISO 9276-6
    ratio of the ellipse axes
circularity | ratio | min(1, 4 pi A / P^2) | ISO 9276-6 form factor
    1 = disc, small = ragged or slender; ISO 9276-6 calls this form factor, ImageJ circularity
circularity_iso | ratio | min(1, sqrt(4 pi A) / P) | ISO 9276-6 | on request
    what ISO 9276-6 calls circularity: the root of the form factor
roundness | ratio | 4 A / (pi x_Fmax^2) | ISO 9276-6
    area over that of the disc on the maximum Feret diameter
compactness | ratio | x_A / x_Fmax | ISO 9276-6
    root of the roundness
extent | ratio | A / (x_Fmin x_Fmax) | ISO 9276-6
    bulkiness
convexity | ratio | min(1, P_C / P) | ISO 9276-6
    hull perimeter over perimeter, both by Crofton's formula on the same grid lines, so that 1 = convex
solidity | ratio | A / A_C | ISO 9276-6
    area over hull area
completeness | ratio | 4 A / (pi x_Lmax x_Lmin) | source
    area over that of the ellipse, 1 = a whole ellipse (the source fits the ellipse to the outline instead)
geodesic_length | length | x_LG = (P + sqrt(P^2 - 16 A)) / 4 | ISO 9276-6 | on request
    length of a thin fibre; empty for compact particles
geodesic_thickness | length | x_E = (P - sqrt(P^2 - 16 A)) / 4 | ISO 9276-6 | on request
    thickness of a thin fibre; empty for compact particles
elongation | ratio | x_E / x_LG | ISO 9276-6 | on request
    thickness over length of a thin fibre; empty for compact particles
centroid_y | pixel | mean of y | ISO 13322-1
    centre of gravity, row
centroid_x | pixel | mean of x | ISO 13322-1
    centre of gravity, column
bbox_y0 | pixel | min y | source
    bounding box, first row
bbox_x0 | pixel | min x | source
    bounding box, first column
bbox_y1 | pixel | max y + 1 | source
    bounding box, one past the last row
bbox_x1 | pixel | max x + 1 | source
    bounding box, one past the last column
touches_border | flag | | source
    has a pixel in the first or last row or column of the image, so it may be cut
edge_weight | weight | H W / ((H - h - 1)(W - w - 1)) | ISO 13322-1
    Miles-Lantuejoul weight against the loss of large particles at the frame; 0 where the particle touches it
touching_neighbours | count | | keras_microseg
    number of other particles that share an edge or a corner with this one
nearest_distance | length | | keras_microseg
    distance of the nearest other centre of gravity; empty for a single particle
intensity_mean | grey | sum g / N | source
    mean of the finite grey values
intensity_median | grey | | ImageJ
    median of the finite grey values
intensity_min | grey | | ImageJ
    least finite grey value
intensity_max | grey | | ImageJ
    greatest finite grey value
intensity_std | grey | sqrt(sum (g - mean)^2 / N) | ImageJ
    standard deviation of the finite grey values
"""


def read_quantities(text: str) -> dict[str, Quantity]:
    """Quantities from lines `name | kind | formula | reference` (and `| on request`), each with its meaning below."""
    lines = text.strip().splitlines()
    quantities = {}
    for definition, meaning in zip(lines[::2], lines[1::2], strict=True):
        name, kind, formula, reference, *request = (part.strip() for part in definition.split("|"))
        quantities[name] = Quantity(name, kind, formula, meaning.strip(), reference, request != ["on request"])
    return quantities


# the same for volumes; lines shared with images have the same names
_SOLID_TABLE = """
volume | volume | V = N s_z s_y s_x | ISO 13322-1
    volume of the N voxel boxes, holes left out
equivalent_diameter | length | x_V = (6 V / pi)^(1/3) | ISO 9276-6
    diameter of the sphere of equal volume
surface_area | area | A_mc = sum over 2 x 2 x 2 cells of marching cubes | Lorensen and Cline 1987
    area of the marching-cubes mesh, closed at the frame; 8 to 9 % too large for smooth solids however small the voxels
surface_area_crofton | area | A = 2 sum_k c_k N_k V_voxel / d_k | Ohser and Muecklich 2000
    Crofton surface: N_k crossings along 13 directions of share c_k; free of that bias (spheres: within 1 %)
sphericity | ratio | pi^(1/3) (6 V)^(2/3) / A_mc | Wadell 1935
    surface of the sphere of equal volume over marching-cubes surface; 0.92 for a digital sphere because of its bias
sphericity_crofton | ratio | pi^(1/3) (6 V)^(2/3) / A | Wadell 1935
    the same with the Crofton surface: 1 = sphere
ellipsoid_major | length | 2 sqrt(5 lambda_1) | ISO 9276-6
    longest axis of the ellipsoid of equal second moments (inertia), of the voxel boxes
ellipsoid_middle | length | 2 sqrt(5 lambda_2) | ISO 9276-6
    middle axis of that ellipsoid
ellipsoid_minor | length | 2 sqrt(5 lambda_3) | ISO 9276-6
    shortest axis of that ellipsoid
elongation | ratio | middle / major | Zingg 1935
    1 = not elongated
flatness | ratio | minor / middle | Zingg 1935
    1 = not flat
axis_z | ratio | unit vector | keras_microseg
    direction of the longest axis, z component (>= 0)
axis_y | ratio | unit vector | keras_microseg
    direction of the longest axis, y component
axis_x | ratio | unit vector | keras_microseg
    direction of the longest axis, x component
sphere_diameter | length | 2 r, least squares of |p - c|^2 - r^2 | Coope 1993
    diameter of the sphere fitted to the surface (middles of the voxel faces, those at the frame left out)
sphere_residual | length | rms of (|p - c|^2 - r^2) / 2 r | Coope 1993
    how far the surface lies off that sphere; about 0.3 voxels for a perfect sphere
sphere_z | pixel | c | Coope 1993
    centre of that sphere, plane
sphere_y | pixel | c | Coope 1993
    centre of that sphere, row
sphere_x | pixel | c | Coope 1993
    centre of that sphere, column
feret_min | length | x_Fmin | ISO 13322-1 | on request
    least distance of two parallel tangent planes over 400 directions (at most 1 % too large for compact solids)
feret_max | length | x_Fmax | ISO 13322-1 | on request
    greatest distance of two parallel tangent planes over 400 directions (at most 0.5 % too small)
euler_number | count | objects - handles + cavities | Ohser and Muecklich 2000
    Euler number of the voxel boxes (26-connected): 1 = solid without handles, 2 = with one cavity
centroid_z | pixel | mean of z | ISO 13322-1
    centre of gravity, plane
centroid_y | pixel | mean of y | ISO 13322-1
    centre of gravity, row
centroid_x | pixel | mean of x | ISO 13322-1
    centre of gravity, column
bbox_z0 | pixel | min z | source
    bounding box, first plane
bbox_y0 | pixel | min y | source
    bounding box, first row
bbox_x0 | pixel | min x | source
    bounding box, first column
bbox_z1 | pixel | max z + 1 | source
    bounding box, one past the last plane
bbox_y1 | pixel | max y + 1 | source
    bounding box, one past the last row
bbox_x1 | pixel | max x + 1 | source
    bounding box, one past the last column
touches_border | flag | | source
    has a voxel on a face of the volume, so it may be cut
edge_weight | weight | D H W / ((D - d - 1)(H - h - 1)(W - w - 1)) | Miles 1974
    Miles-Lantuejoul weight against the loss of large particles at the frame; 0 where the particle touches it
coordination_number | count | | keras_microseg
    number of other particles that share a face, edge or corner with this one
contact_area | area | | keras_microseg
    area of the voxel faces shared with other particles
nearest_distance | length | | keras_microseg
    distance of the nearest other centre of gravity; empty for a single particle
intensity_mean | grey | sum g / N | source
    mean of the finite grey values
intensity_median | grey | | ImageJ
    median of the finite grey values
intensity_min | grey | | ImageJ
    least finite grey value
intensity_max | grey | | ImageJ
    greatest finite grey value
intensity_std | grey | sqrt(sum (g - mean)^2 / N) | ImageJ
    standard deviation of the finite grey values
"""

QUANTITIES = read_quantities(_TABLE)
SOLID_QUANTITIES = read_quantities(_SOLID_TABLE)


def quantities_of(ndim: int) -> dict[str, Quantity]:
    """The quantities of images (2) or volumes (3)."""
    return SOLID_QUANTITIES if ndim == 3 else QUANTITIES


def describe_formulas(ndim: int, indent: str = "        ") -> str:
    """One line per quantity, for docstrings."""
    lines = []
    for quantity in quantities_of(ndim).values():
        formula = f" {quantity.formula}:" if quantity.formula else ""
        note = "" if quantity.is_default else " On request."
        lines.append(f"{indent}{quantity.name}:{formula} {quantity.meaning} [{quantity.reference}].{note}")
    return "\n".join(lines)


def select_quantities(names: Iterable[str] | None, *, has_intensity: bool, ndim: int = 2) -> list[Quantity]:
    """The quantities for `names` in the order given, or the default ones.

    Raises:
        UserError: an unknown name, or a grey-value quantity without an image.
    """
    known = quantities_of(ndim)
    if names is None:
        return [q for q in known.values() if q.is_default and (has_intensity or q.kind != "grey")]
    names = [names] if isinstance(names, str) else [name for name in names if name != "label"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"Unknown quantities {unknown}. Choose from {', '.join(known)}.")
    chosen = [known[name] for name in dict.fromkeys(names)]
    grey = [q.name for q in chosen if q.kind == "grey"]
    if grey and not has_intensity:
        raise UserError(f"{', '.join(grey)} need the image. Pass `intensity`, of the size of the labels.")
    return chosen


def describe_quantities(names: Iterable[str] | None = None, *, unit: str = "px", ndim: int = 2) -> pd.DataFrame:
    """The table of definitions, for a sheet beside the results.

    Args:
        names: quantities to list, for example the columns of a table (unknown columns are passed over); None = all.
        unit: unit of lengths.
        ndim: 2 for images, 3 for volumes.

    Returns:
        DataFrame with columns quantity, unit, formula, meaning, reference.
    """
    known = quantities_of(ndim)
    listed = known.values() if names is None else [known[name] for name in names if name in known]
    rows = [(q.name, q.unit(unit), q.formula, q.meaning, q.reference) for q in listed]
    return pd.DataFrame(rows, columns=["quantity", "unit", "formula", "meaning", "reference"])
