"""Commands of `keras-microseg particles ...` on detected particles: simulate, link, measure."""

from __future__ import annotations

from typing import Annotated

import typer

from keras_microseg.cli.shared import Out, Overwrite, Resume, Seed, examples, list_failures, show_progress

app = typer.Typer()

VoxelSize = Annotated[
    str | None,
    typer.Option("--voxel-size", "-p", help='Edge lengths like 70nm or "0.2 x 0.07 x 0.07 um" (z, y, x). '
                 "Default: from the file."),
]  # fmt: skip


@app.command(
    epilog=examples(
        "keras-microseg particles simulate --out DATA --images 40 --size 512x512",
        "keras-microseg particles simulate --out CATHODE --volume 128x384x384 --kind tif",
    )
)
def simulate(
    out: Out,
    images: Annotated[int, typer.Option(help="Slices, each through a cathode of its own.")] = 20,
    size: Annotated[str, typer.Option(help="Rows x columns of a slice.")] = "512x512",
    volume: Annotated[str | None, typer.Option(help="One volume instead: planes x rows x columns.")] = None,
    diameter: Annotated[float, typer.Option(help="Mean diameter of the particles, voxels.")] = 36.0,
    spread: Annotated[float, typer.Option(help="Standard deviation of the diameter over its mean.")] = 0.2,
    fraction: Annotated[float, typer.Option(help="Volume share of the particles.")] = 0.42,
    touching: Annotated[float, typer.Option(help="Share of the particles placed in contact with another.")] = 0.4,
    cracked: Annotated[float, typer.Option(help="Share of the particles with cracks and pores inside.")] = 0.3,
    shattered: Annotated[float, typer.Option(help="Share of the particles broken to fragments.")] = 0.2,
    crack_width: Annotated[float, typer.Option(help="Mean width of cracks, voxels.")] = 2.5,
    detachment: Annotated[
        str, typer.Option(help="Least and greatest share of a particle's surface under a void shell.")
    ] = "0,0.9",
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise, share of full scale.")] = 0.03,
    voxel_size: Annotated[str, typer.Option("--voxel-size", "-p", help="Edge length of the voxels.")] = "70nm",
    kind: Annotated[str, typer.Option("--kind", help="Volume as zarr, tif or npy.")] = "zarr",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw battery cathodes with exactly known particles, phases, detachment and damage. Needs no keras.

    Slices are written as images/, labels/, phases/ and objects.csv; a volume as grey, labels, phases and particles.csv.
    Phases: 0 void, 1 carbon/binder, 2 particle, 3 crack.
    """
    from keras_microseg.simulation.cathodes import CathodeSettings
    from keras_microseg.workflows.simulate_cathodes import CathodeRun, simulate_cathodes
    from keras_microseg.workflows.steps import read_json

    shape = _lengths(size, 2, "--size") if volume is None else _lengths(volume, 3, "--volume")
    cathode = CathodeSettings(
        shape=shape if volume is not None else (1, *shape), diameter=diameter, spread=spread, fraction=fraction,
        touching=touching, cracked=cracked, shattered=shattered, crack_width=crack_width,
        detachment=_numbers(detachment, "--detachment"), noise=noise, seed=seed,
    )  # fmt: skip
    run = CathodeRun(None if volume is not None else images, cathode, voxel_size, kind)
    with show_progress() as progress:
        path = simulate_cathodes(run, out, resume=resume, overwrite=overwrite, progress=progress)
    counts = read_json(path / "run.json").get("particles")
    if counts is not None:
        typer.echo(f"{sum(counts.values())} sections of particles in {len(counts)} slices.")
    typer.echo(f"Written: {path}")


@app.command(
    epilog=examples(
        "keras-microseg particles link DETECTIONS --out LINKED",
        "keras-microseg particles link VIEWS --out LINKED --min-votes 2",
        "keras-microseg particles link slices.zarr --out LINKED --max-gap 1 --min-slices 5 --voxel-size 70nm",
    )
)
def link(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of label images, a volume of labels that count anew in every slice, or a folder that holds "
            "such volumes or folders of two or three views (labels_z or z, ...).",
            metavar="DETECTIONS",
        ),
    ],
    out: Out,
    axis: Annotated[str, typer.Option(help="Along which slices follow each other: z, y or x.")] = "z",
    min_iou: Annotated[float, typer.Option(help="IoU above which labels of two slices may be one particle.")] = 0.2,
    max_gap: Annotated[int, typer.Option(help="Slices a particle may be missing, split or merged.")] = 2,
    min_inside: Annotated[
        float, typer.Option(help="Share of a part that lies inside a particle when it belongs to it; 1 = no repair.")
    ] = 0.7,
    neck: Annotated[
        float,
        typer.Option(help="Cut where the area falls below this share of the maxima on both sides; 0 = never."),
    ] = 0.65,
    min_slices: Annotated[int, typer.Option(help="Particles in fewer slices are left out.")] = 3,
    min_size: Annotated[int, typer.Option(help="Particles of fewer voxels are left out.")] = 0,
    min_score: Annotated[float, typer.Option(help="Labels with a lower score are left out.")] = 0.0,
    min_votes: Annotated[int | None, typer.Option(help="Views that must agree. Default: more than half.")] = None,
    fill_gaps: Annotated[bool, typer.Option("--fill-gaps/--no-fill-gaps", help="Fill slices that miss it.")] = True,
    kind: Annotated[str, typer.Option("--kind", help="Result as zarr, tif or npy.")] = "zarr",
    voxel_size: VoxelSize = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Join the labels of slices to particles: gaps bridged, splits joined, merged labels cut. Needs no keras."""
    from keras_microseg.segmentation.linking import LinkSettings
    from keras_microseg.workflows import particle_link
    from keras_microseg.workflows.steps import read_json

    how = LinkSettings(min_iou, max_gap, min_inside, neck, min_slices, fill_gaps)
    run = particle_link.LinkRun(source, axis, min_score, how, min_votes, min_size, kind, voxel_size)
    with show_progress() as progress:
        path = particle_link.link(run, out, resume=resume, overwrite=overwrite, progress=progress)
    facts = read_json(out / "run.json")
    for name in (name for name in facts if name.startswith("along_")):
        found = facts[name]
        typer.echo(
            f"Along {name[-1]}: {found['labels']} labels in {found['slices']} slices -> {found['objects']} particles; "
            f"{found['gaps_bridged']} gaps bridged, {found['parts_joined']} parts joined, "
            f"{found['merged_cut']} merged labels cut."
        )
    typer.echo(f"{facts['objects']} particles. Written: {path}")


@app.command(
    epilog=examples(
        "keras-microseg particles measure LINKED/labels.zarr --phases phases.zarr --voxel-size 70nm --out RESULT",
        "keras-microseg particles measure labels.tif --grey grey.tif --phases otsu --collector z0 --out RESULT",
        "keras-microseg particles measure A.tif B.tif --phases PA.tif --phases PB.tif --group 10 --group 50 --out R",
    )
)
def measure(
    labels: Annotated[list[str], typer.Argument(help="Label volumes of particles, one per sample.", metavar="LABELS")],
    out: Out,
    phases: Annotated[
        list[str] | None,
        typer.Option(help="Phase volume, one per label volume; or 'otsu': from --grey by multi-Otsu thresholds."),
    ] = None,
    grey: Annotated[list[str] | None, typer.Option(help="Grey volume, one per label volume.")] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Grey values between void and CBD, and CBD and particle, like 90,160.")
    ] = None,
    void: Annotated[str, typer.Option(help="Values of void in the phase volume, with commas.")] = "0",
    cbd: Annotated[str, typer.Option(help="Values of carbon and binder.")] = "1",
    particle: Annotated[str, typer.Option(help="Values of active material.")] = "2",
    crack: Annotated[str, typer.Option(help="Values of cracks, where they are a class; 'none'.")] = "3",
    classes: Annotated[
        str | None,
        typer.Option(help="Instead: names of the values 0, 1, ... in order, of void, cbd, particle, crack."),
    ] = None,
    distances: Annotated[str, typer.Option(help="Distances of the sweep, voxels.")] = "1,2,3,4,5",
    distance: Annotated[float, typer.Option(help="Main distance, voxels.")] = 3.0,
    skip: Annotated[
        float | None,
        typer.Option(help="Shells leave out what is not farther, voxels. Default: 1.5 for phases from grey values."),
    ] = None,
    fill_radius: Annotated[float, typer.Option(help="Ball that closes cracks, voxels; 0 = fill holes only.")] = 10.0,
    rim: Annotated[
        float | None,
        typer.Option(
            help="Empty voxels this near under the outline are no cracks, voxels. Default: 1 for phases from grey."
        ),
    ] = None,
    collector: Annotated[str | None, typer.Option(help="Face at the collector: z0, z1, y0, y1, x0, x1.")] = None,
    border: Annotated[int, typer.Option(help="Particles this near to the border are left out too, voxels.")] = 0,
    min_size: Annotated[int, typer.Option(help="Smaller objects are left out, voxels.")] = 100,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Label of each volume (cycles, rate), in order; or one CSV with columns label, group."),
    ] = None,
    unit: Annotated[str, typer.Option("--unit", help="Unit of all lengths.")] = "um",
    voxel_size: VoxelSize = None,
    max_ram: Annotated[str, typer.Option("--max-ram", help="Memory for planes kept from disk.")] = "1GB",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Detachment, damage, shape, contacts and neighbours of every particle, with tests, figures and a report."""
    from keras_microseg.measurement.cathode_table import CathodeMeasures
    from keras_microseg.measurement.particle_crops import PhaseClasses
    from keras_microseg.workflows.particle_measure import CathodeMeasureRun, measure_cathodes
    from keras_microseg.workflows.steps import read_json

    if classes is None:
        roles = {"void": void, "cbd": cbd, "particle": particle, "crack": crack}
        phase_classes = PhaseClasses(**{name: _values(text, f"--{name}") for name, text in roles.items()})
    else:
        phase_classes = PhaseClasses(**_named_values(classes))
    from_grey = thresholds is not None or phases == ["otsu"]
    skip = (1.5 if from_grey else 0.0) if skip is None else skip
    rim = (1.0 if from_grey else 0.0) if rim is None else rim
    measures = CathodeMeasures(
        phase_classes, _numbers(distances, "--distances"), distance, skip, fill_radius=fill_radius, rim=rim,
        collector=collector, border=border, min_size=min_size, max_ram=max_ram,
    )  # fmt: skip
    run = CathodeMeasureRun(
        tuple(labels), tuple(phases or ()), () if thresholds is None else _numbers(thresholds, "--thresholds"),
        tuple(grey or ()), tuple(group or ()), measures, unit, voxel_size, seed,
    )  # fmt: skip
    with show_progress() as progress:
        folder = measure_cathodes(run, out, resume=resume, overwrite=overwrite, progress=progress)
    facts = read_json(folder.path / "run.json")
    for name, found in facts["volumes"].items():
        text = f"{name}: {found['particles']} particles, {found['edge_particles']} of them cut by the border"
        for key, word in (("mean_detachment", "detachment"), ("mean_damage", "damage")):
            if found.get(key) is not None:
                text += f", mean {word} {found[key]:.3f}"
        typer.echo(text + ".")
    if facts["volumes"]:
        typer.echo(f"Report: {folder.path / 'report.html'}")
    list_failures(folder.failures())


def _named_values(text: str) -> dict[str, tuple[int, ...]]:
    """'cbd,void,particle' -> {"void": (1,), "cbd": (0,), "particle": (2,), "crack": ()}."""
    names = [name.strip().lower() for name in text.split(",")]
    roles = ("void", "cbd", "particle", "crack")
    unknown = [name for name in names if name not in roles]
    if unknown:
        raise typer.BadParameter(f"use the names {', '.join(roles)}. Received: {text!r}", param_hint="--classes")
    return {role: tuple(value for value, name in enumerate(names) if name == role) for role in roles}


def _values(text: str, option: str) -> tuple[int, ...]:
    """'0,4' -> (0, 4); 'none' -> ()."""
    if text.strip().lower() in ("none", ""):
        return ()
    numbers = _numbers(text, option)
    if any(value != int(value) for value in numbers):
        raise typer.BadParameter(f"write whole numbers with commas. Received: {text!r}", param_hint=option)
    return tuple(int(value) for value in numbers)


def _lengths(text: str, count: int, option: str) -> tuple[int, ...]:
    """'712x1024' -> (712, 1024); one number stands for all."""
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.strip().isdigit() for part in parts) or len(parts) not in (1, count):
        names = "planes x rows x columns" if count == 3 else "rows x columns"
        raise typer.BadParameter(f"write {names}. Received: {text!r}", param_hint=option)
    return tuple(int(part) for part in parts) * (count if len(parts) == 1 else 1)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"write numbers with commas. Received: {text!r}", param_hint=option) from None
