"""The report of a training-set defence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.filters import Filter
from undoor.findings.findings import Findings
from undoor.findings.tables import VIEW_COLUMNS
from undoor.report import charts, pictures
from undoor.report.page import render

SHEET = 24
"""Images shown of a flagged cluster."""

CARDS = 12
"""Flagged clusters that are shown: the most impure."""

SHEET_PIXELS = 320_000
"""Of all images on all cards together; many flagged clusters of large images are shown with fewer of them."""

POINTS = 50_000
"""Samples that can be looked at and selected; of a larger set all that are flagged, and others evenly spaced."""

GRID = 4095
"""Places on a map are whole numbers up to this."""


def render_report(findings: Findings, dataset: Dataset, image_filter: Filter) -> str:
    """Return the report as one HTML file: verdict, clusters by impurity, cards of the flagged ones, maps, curves.

    It shows ``VIEW_COLUMNS`` where the findings have them. ``dataset`` is what was scanned.
    """
    rows = _shown(findings)
    small = pictures.smalls(dataset, _pictured(findings, rows))
    clusters = findings.clusters.sort_values("impurity", ascending=False, kind="stable").to_dict("records")
    place = {int(row): number for number, row in enumerate(rows)}
    cards = _cards(findings, dataset, image_filter)
    for image in (image for card in cards for image in card["images"]):
        image["place"] = place[image["row"]]
    return render(
        "findings.html.j2",
        _data(findings, rows, small, int(cards[0]["group"]["class"]) if cards else None),
        findings=findings,
        summary=findings.summary(),
        margin=_margin(findings),
        doubts=findings.doubts,
        clusters=[
            {**row, "went_to": charts.destinations(row["destinations"], findings.class_names, 3)} for row in clusters
        ],
        axis=charts.impurity_axis(findings) if clusters else None,
        curves=charts.bic_curves(findings) if len(findings.curves) else None,
        cards=cards,
        cards_left_out=len(_groups(findings)) - len(cards),
        by_class=_by_class(findings),
        small=small,
        points=len(rows),
        mapped=set(VIEW_COLUMNS) <= set(findings.samples.columns),
        filter_name=str(image_filter),
        shown_size=tuple(min(side, pictures.LARGEST) for side in dataset.images.shape[2:]),
        image_size=dataset.images.shape[2:],
        amplified=pictures.AMPLIFIED,
    )


def _margin(findings: Findings) -> dict[str, float | None]:
    """Return the highest value left alone and the lowest one flagged, of clusters, or of samples without them."""
    values = findings.clusters["impurity"] if len(findings.clusters) else findings.samples["score"]
    flagged = findings.clusters["flagged"] if len(findings.clusters) else findings.samples["flagged"]
    return {
        "below": float(values[~flagged].max()) if (~flagged).any() else None,
        "above": float(values[flagged].min()) if flagged.any() else None,
    }


def _shown(findings: Findings) -> NDArray[np.int64]:
    """Return the rows of the samples that the page knows, in their order."""
    flagged, others = np.flatnonzero(findings.flagged), np.flatnonzero(~findings.flagged)
    return np.sort(np.concatenate([flagged, pictures.evenly(others, max(POINTS - len(flagged), 0))]))


def _pictured(findings: Findings, rows: NDArray[np.int64], most: int = 6000) -> NDArray[np.int64]:
    """Return the rows of which a small picture is wanted: half of them flagged ones, if there are so many."""
    flagged = findings.flagged[rows]
    first = pictures.evenly(rows[flagged], max(most // 2, most - int((~flagged).sum())))
    return np.sort(np.concatenate([first, pictures.evenly(rows[~flagged], most - len(first))]))


def _groups(findings: Findings) -> list[dict[str, Any]]:
    """Return what cards show, as groups of rows: what is flagged, clusters or classes where there are none.

    The most impure cluster comes first. Where nothing is flagged, it is what is doubtful, or the most impure cluster.
    """
    samples, clusters = findings.samples, findings.clusters
    if len(clusters):
        clusters = clusters.sort_values("impurity", ascending=False, kind="stable")
        doubtful = {doubt.cluster for doubt in findings.doubts}
        chosen = clusters["flagged"].to_numpy(dtype=bool)
        if not chosen.any():
            chosen = np.array([key in doubtful for key in zip(clusters["class"], clusters["cluster"], strict=True)])
        if not chosen.any():
            chosen[0] = True
        members = samples.groupby(["label", "cluster"]).indices
        table: list[dict[str, Any]] = clusters[chosen].to_dict("records")  # type: ignore[assignment] # its columns
        return [{**row, "rows": members[row["class"], row["cluster"]]} for row in table]
    return [
        {"class": label, "class_name": findings.class_names[label], "cluster": None, "rows": rows, "size": len(rows),
         "flagged": True}
        for label in np.unique(samples["label"][findings.flagged])
        if len(rows := np.flatnonzero(findings.flagged & (samples["label"] == label)))
    ]  # fmt: skip


def _cards(findings: Findings, dataset: Dataset, image_filter: Filter) -> list[dict[str, Any]]:
    groups = _groups(findings)[:CARDS]
    pixels = int(np.prod([min(side, pictures.LARGEST) for side in dataset.images.shape[2:]]))
    images = min(max(SHEET_PIXELS // (pixels * max(len(groups), 1)), 2), SHEET)
    samples, cards = findings.samples, []
    for group in groups:
        rows = group.pop("rows")
        of_class = np.flatnonzero(samples["label"] == group["class"])
        others = np.setdiff1d(of_class, rows) if not group["flagged"] else of_class[~findings.flagged[of_class]]
        group["fallen"] = _fallen(findings, rows)
        sheet = pictures.sheet(dataset, pictures.evenly(rows, images), image_filter)
        for image in sheet:
            sample = samples.iloc[image["row"]]
            image["label"], image["before"] = (findings.class_names[sample[c]] for c in ("label", "predicted"))
            image["after"] = findings.class_names[sample["filtered"]] if "filtered" in samples else None
        cards.append(
            {
                "group": group,
                "images": sheet,
                "trace": pictures.trace(dataset, rows, others, image_filter),
                "went_to": charts.destinations(group.get("destinations", ()), findings.class_names),
            }
        )
    return cards


def _fallen(findings: Findings, rows: NDArray[np.int64]) -> float | None:
    """Return the share of decisions for the label that the filter changes, whether or not that counts."""
    samples = findings.samples.iloc[rows]
    decided = samples[samples["predicted"] == samples["label"]]
    if "filtered" not in samples or decided.empty:
        return None
    return float((decided["filtered"] != decided["label"]).mean())


def _by_class(findings: Findings) -> list[dict[str, Any]]:
    """Return, for each class that is present, how many of its samples are flagged."""
    table = findings.samples.groupby("label", as_index=False).agg(
        size=("flagged", "size"), flagged=("flagged", "sum"), highest=("score", "max")
    )
    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment] # its columns have names
    return [{"name": findings.class_names[row["label"]], **row} for row in rows]


def _data(findings: Findings, rows: NDArray[np.int64], small: pictures.Smalls, first: int | None) -> dict[str, Any]:
    """Return what the page's script works on: one list a column of the samples at ``rows``; ``first``: shown first."""
    samples = findings.samples.iloc[rows]
    thumb = np.full(len(findings.samples), -1)
    thumb[small.rows] = np.arange(len(small.rows))
    columns = {
        "id": samples["id"].tolist(),
        "score": [float(f"{score:.4g}") for score in samples["score"]],
        "flagged": samples["flagged"].astype(int).tolist(),
        "thumb": thumb[rows].tolist(),
    }
    columns |= {name: samples[name].tolist() for name in ("label", "predicted", "cluster")}
    if "x" in samples:
        columns["filtered"] = samples["filtered"].tolist()
        for axis in ("x", "y"):
            low, high = (samples.groupby("label")[axis].transform(end) for end in ("min", "max"))
            spread = np.maximum(high - low, 1e-9)
            columns[axis] = (GRID * (samples[axis] - low) / spread).round().astype(int).tolist()
    return {
        "classes": list(findings.class_names),
        "first": first,
        "grid": GRID,
        "thumbs": {"columns": small.columns, "height": small.size[0], "width": small.size[1]},
        "samples": columns,
    }
