"""The page of the findings of a training-set defense."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undoor.data.dataset import Dataset
from undoor.errors import UndoorError
from undoor.filters import Filter, parse_filter
from undoor.findings.findings import Findings
from undoor.findings.reading import read_findings
from undoor.findings.tables import REPORT_COLUMNS
from undoor.report import charts, pictures
from undoor.report.page import render
from undoor.storage.atomic import write_text
from undoor.storage.lock import claimed

CARD_IMAGES = 24
"""A card shows at most this many images of a flagged cluster."""

CARDS = 12
"""At most this many flagged clusters have a card: those of highest impurity."""

CARD_PIXELS = 320_000
"""All images on all cards together have at most this many pixels, so that many or large ones show fewer images."""

POINTS = 50_000
"""At most this many samples can be looked at and selected: all that are flagged, and others evenly spaced."""

PICTURED = 6000
"""At most this many of them have a thumbnail; half of these are flagged ones, if there are so many."""

GRID = 4095
"""Coordinates on a map are whole numbers up to this."""


def write_findings(
    findings: Findings, dataset: Dataset, image_filter: Filter, folder: Path, *, overwrite: bool = False
) -> None:
    """Write the findings with their page into ``folder``; the other arguments are those of ``render_findings``."""
    findings.write(folder, render_findings(findings, dataset, image_filter), overwrite=overwrite)


def rewrite_report(folder: Path, dataset: Dataset) -> Path:
    """Write the page of the findings in ``folder`` again, and return its path; ``dataset`` is what was scanned."""
    findings = read_findings(folder)
    if findings.samples["id"].tolist() != dataset.ids.tolist() or findings.class_names != dataset.class_names:
        raise UndoorError(f"the findings in {folder} are of other images than the data; give the data that was scanned")
    with claimed(folder):
        write_text(folder / "report.html", render_findings(findings, dataset, parse_filter(findings.image_filter)))
    return folder / "report.html"


def render_findings(findings: Findings, dataset: Dataset, image_filter: Filter) -> str:
    """Return findings as one HTML file: verdict, clusters by impurity, cards of the flagged ones, maps and curves.

    Args:
        findings: the maps and the decisions on filtered images are only shown if they have ``REPORT_COLUMNS``.
        dataset: the data set that was scanned.
        image_filter: the filter whose effect on the images is shown.

    """
    rows = _shown(findings)
    thumbnails = pictures.thumbnails(dataset, _pictured(findings, rows))
    clusters = findings.clusters.sort_values("impurity", ascending=False, kind="stable").to_dict("records")
    groups = _groups(findings)
    cards = _cards(findings, dataset, image_filter, groups[:CARDS])
    index = {int(row): number for number, row in enumerate(rows)}
    for image in (image for card in cards for image in card["images"]):
        image["index"] = index[image["row"]]
    return render(
        "findings.html.j2",
        _script_data(findings, rows, thumbnails, int(cards[0]["group"]["class"]) if cards else None),
        findings=findings,
        summary=findings.summary(),
        margin=_margin(findings),
        doubts=findings.doubts,
        clusters=[
            {**row, "changed_to": charts.destinations(row["destinations"], findings.class_names, 3)} for row in clusters
        ],
        axis=charts.impurity_axis(findings) if clusters else None,
        curves=charts.bic_curves(findings) if len(findings.curves) else None,
        cards=cards,
        cards_left_out=len(groups) - len(cards),
        by_class=_by_class(findings),
        thumbnails=thumbnails,
        points=len(rows),
        mapped=set(REPORT_COLUMNS) <= set(findings.samples.columns),
        filter_name=str(image_filter),
        shown_size=tuple(min(side, pictures.LARGEST) for side in dataset.images.shape[2:]),
        image_size=dataset.images.shape[2:],
        amplified=pictures.AMPLIFIED,
    )


def _margin(findings: Findings) -> dict[str, float | None]:
    """Return the highest value that is not flagged and the lowest that is: of clusters, or of samples without them."""
    table, column = (findings.clusters, "impurity") if len(findings.clusters) else (findings.samples, "score")
    flagged = table["flagged"]
    return {
        "below": float(table.loc[~flagged, column].max()) if (~flagged).any() else None,
        "above": float(table.loc[flagged, column].min()) if flagged.any() else None,
    }


def _shown(findings: Findings) -> NDArray[np.int64]:
    """Return the rows of the samples that are on the page, in their order."""
    flagged, others = np.flatnonzero(findings.flagged), np.flatnonzero(~findings.flagged)
    return np.sort(np.concatenate([flagged, pictures.evenly(others, max(POINTS - len(flagged), 0))]))


def _pictured(findings: Findings, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of the rows that are to have a thumbnail."""
    flagged = findings.flagged[rows]
    first = pictures.evenly(rows[flagged], max(PICTURED // 2, PICTURED - int((~flagged).sum())))
    return np.sort(np.concatenate([first, pictures.evenly(rows[~flagged], PICTURED - len(first))]))


def _groups(findings: Findings) -> list[dict[str, Any]]:
    """Return the groups of samples that cards show, each with the ``rows`` of its samples.

    They are the flagged clusters, the cluster of highest impurity first; for a method without clusters, the flagged
    samples of each class. If no cluster is flagged, they are the doubtful ones, or else the one of highest impurity.
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


def _cards(
    findings: Findings, dataset: Dataset, image_filter: Filter, groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a card for each group: its images before and after the filter, and where its decisions go."""
    pixels = int(np.prod([min(side, pictures.LARGEST) for side in dataset.images.shape[2:]]))
    images = min(max(CARD_PIXELS // (pixels * max(len(groups), 1)), 2), CARD_IMAGES)
    samples, cards = findings.samples, []
    for group in groups:
        rows = group["rows"]
        of_class = np.flatnonzero(samples["label"] == group["class"])
        others = of_class[~findings.flagged[of_class]] if group["flagged"] else np.setdiff1d(of_class, rows)
        sheet = pictures.sheet(dataset, pictures.evenly(rows, images), image_filter)
        for image in sheet:
            sample = samples.iloc[image["row"]]
            image["label"], image["before"] = (findings.class_names[sample[c]] for c in ("label", "predicted"))
            image["after"] = findings.class_names[sample["filtered"]] if "filtered" in samples else None
        cards.append(
            {
                "group": group,
                "changed": _changed_share(findings, rows),
                "images": sheet,
                "mean_change": pictures.mean_change(dataset, rows, others, image_filter),
                "changed_to": charts.destinations(group.get("destinations", ()), findings.class_names),
            }
        )
    return cards


def _changed_share(findings: Findings, rows: NDArray[np.int64]) -> float | None:
    """Return the share of decisions as labelled that the filter changes, whether or not the change counts."""
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


def _script_data(
    findings: Findings, rows: NDArray[np.int64], thumbnails: pictures.Thumbnails, first: int | None
) -> dict[str, Any]:
    """Return the data of the page's script: the samples at ``rows`` by column; ``first`` is the class shown first."""
    samples = findings.samples.iloc[rows]
    thumbnail = np.full(len(findings.samples), -1)
    thumbnail[thumbnails.rows] = np.arange(len(thumbnails.rows))
    columns = {
        "id": samples["id"].tolist(),
        "score": [float(f"{score:.4g}") for score in samples["score"]],
        "flagged": samples["flagged"].astype(int).tolist(),
        "thumbnail": thumbnail[rows].tolist(),
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
        "thumbnails": {"columns": thumbnails.columns, "height": thumbnails.size[0], "width": thumbnails.size[1]},
        "samples": columns,
    }
