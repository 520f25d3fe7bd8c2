"""The findings as one HTML file that opens offline."""

import base64
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from undoor.dataset import Dataset
from undoor.filters import Filter
from undoor.findings import Findings
from undoor.readers.images import encode_png

SHEET = 24
"""Images shown of a flagged cluster."""


def render_report(findings: Findings, dataset: Dataset, image_filter: Filter) -> str:
    """Return the report: verdict, clusters by impurity, and images of the flagged clusters with their twins."""
    clusters = findings.clusters.sort_values("impurity", ascending=False, kind="stable")
    environment = Environment(
        loader=PackageLoader("undoor", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        findings=findings,
        summary=findings.summary(),
        margin=_margin(findings),
        clusters=[
            {**row, "went_to": _went_to(row["destinations"], findings.class_names)}
            for row in clusters.to_dict("records")
        ],
        cards=[
            {"cluster": row, "images": _sheet(row, findings, dataset, image_filter)}
            for row in clusters[clusters["flagged"]].to_dict("records")
        ],
        filter_name=str(image_filter),
    )


def _margin(findings: Findings) -> dict[str, float | None]:
    """Return the highest impurity left alone and the lowest one flagged."""
    impurities: pd.Series[float] = findings.clusters["impurity"]
    flagged = findings.clusters["flagged"]
    return {
        "below": float(impurities[~flagged].max()) if (~flagged).any() else None,
        "above": float(impurities[flagged].min()) if flagged.any() else None,
    }


def _went_to(destinations: list[int], class_names: tuple[str, ...]) -> str:
    """Return the three classes most of the changed decisions went to."""
    order = np.argsort(-np.asarray(destinations), kind="stable")[:3]
    return ", ".join(f"{class_names[k]} ({destinations[k]})" for k in order if destinations[k])


def _sheet(
    row: dict[Hashable, Any], findings: Findings, dataset: Dataset, image_filter: Filter
) -> list[dict[str, str]]:
    of_cluster = (findings.samples["label"] == row["class"]) & (findings.samples["cluster"] == row["cluster"])
    rows = np.flatnonzero(of_cluster.to_numpy())
    chosen = rows[np.linspace(0, len(rows) - 1, min(SHEET, len(rows))).astype(int)]
    images = dataset.images[chosen]
    filtered = image_filter(torch.from_numpy(images).float() / 255)
    twins = (filtered * 255).round().to(torch.uint8).numpy()
    return [
        {"id": str(dataset.ids[sample]), "image": _data_uri(image), "twin": _data_uri(twin)}
        for sample, image, twin in zip(chosen, images, twins, strict=True)
    ]


def _data_uri(image: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")
