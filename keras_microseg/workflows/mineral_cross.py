"""Workflow `mineral train --hold all`: every sample is held out once and judged by the network that never saw it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pandas as pd

from keras_microseg import io
from keras_microseg.data.map_pairs import find_map_pairs
from keras_microseg.workflows import mineral_evaluate, mineral_train
from keras_microseg.workflows.mineral_train_settings import TrainSettings
from keras_microseg.workflows.steps import Progress, item_names

TABLE = "samples.csv"


def cross_validate(
    settings: TrainSettings,
    out: str | os.PathLike,
    *,
    baselines: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Train once per sample without it, and score on it.

    Args:
        settings: see `TrainSettings`; `split` and `hold` are set here, and `minutes` counts for each training.
        out: folder; gets `SAMPLE/model/`, `SAMPLE/scores/` and `samples.csv`.
        baselines: see `EvaluateSettings`.
        resume, overwrite, progress: as for `mineral_train.train`.

    Returns:
        What `samples.csv` holds: a row per sample and method with mean IoU, accuracy, the IoU and the fraction error
        (points) of every class, and the mean over the samples of each method.

    Raises:
        UserError: fewer than two samples.
    """
    out = Path(out)
    samples = list(dict.fromkeys(pair.sample for pair in find_map_pairs(settings.data)))
    rows = []
    for name, sample in zip(item_names([Path(s) for s in samples]), samples, strict=True):
        held = dataclasses.replace(settings, split="leave-one-out", hold=sample)
        done = mineral_train.train(held, out / name / "model", resume=resume, overwrite=overwrite, progress=progress)
        judged = mineral_evaluate.EvaluateSettings(
            str(done.model_path), settings.data, "validation", settings.palette, settings.groups, baselines=baselines,
            seed=settings.seed,
        )  # fmt: skip
        mineral_evaluate.evaluate(judged, out / name / "scores", overwrite=True)
        overall = pd.read_csv(out / name / "scores" / "scores.csv").set_index("method")
        classes = pd.read_csv(out / name / "scores" / "classes.csv")
        for method, part in classes.groupby("method", sort=False):
            scores = {"mean_iou": overall.loc[method, "mean_iou"], "accuracy": overall.loc[method, "accuracy"]}
            ious = {f"iou_{row['class']}": row["iou"] for row in part.to_dict("records")}
            errors = {f"error_{row['class']}": row["error_points"] for row in part.to_dict("records")}
            rows.append({"sample": sample, "method": method, **scores, **ious, **errors})
    table = pd.DataFrame(rows)
    means = table.drop(columns="sample").groupby("method", sort=False).mean().reset_index()
    table = pd.concat([table, means.assign(sample="mean of the samples")], ignore_index=True)
    with io.atomic_path(out / TABLE) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table
