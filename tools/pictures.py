"""Draw the pictures of docs/cluster-impurity.md with the code that they explain, on the embedded digits.

    python -m tools.pictures

writes docs/pictures/*.svg, docs/pictures/numbers.json and the table in the document. The attack is that of the
demonstration, with one seed.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from tools.marked import write_marked
from undoor.attacks import Attack, poison
from undoor.data.dataset import Dataset
from undoor.data.readers import read
from undoor.defenses.training_set import ClusterImpurity
from undoor.defenses.training_set.per_class import principal_axes
from undoor.evidence import Evidence
from undoor.evidence.collect import collect
from undoor.experiments.demo import COUNT, EPOCHS, SIZE, SOURCE, TARGET
from undoor.experiments.report.figures import BLUE, GREEN, GREY, ORANGE, PARAMETERS, PURPLE, RED, SKY, WIDTH
from undoor.experiments.report.tables import markdown
from undoor.filters import Average
from undoor.findings.findings import Findings
from undoor.findings.provenance import versions
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import recipe
from undoor.networks.training import train

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "cluster-impurity.md"
PICTURES = ROOT / "docs" / "pictures"
MARKS = ("<!-- numbers: written by `python -m tools.pictures` -->", "<!-- end of numbers -->")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
SHOWN = 6
"""Poisoned images in the picture of the trigger."""
LEAST = 1e-3
"""Lower impurities are drawn at this value: the axis is logarithmic, and many clusters have an impurity of 0."""


def run() -> tuple[Dataset, Evidence, Findings]:
    """Return the poisoned digits, the evidence and the findings."""
    digits = read("digits")
    poisoned = poison(digits, Attack.one_pixel(digits, sources=[SOURCE], target=TARGET, count=COUNT, size=SIZE, seed=0))
    evidence = collect(Classifier(train(poisoned, recipe(epochs=EPOCHS, seed=0))), poisoned)
    return poisoned, evidence, ClusterImpurity()(evidence).against(poisoned.truth.poisoned)


def trigger(poisoned: Dataset, _: Evidence, findings: Findings) -> Figure:
    """Draw poisoned images, their filtered versions, and the difference."""
    hits = np.flatnonzero(findings.flagged & poisoned.truth.poisoned)
    images = poisoned.images[hits[np.linspace(0, len(hits) - 1, SHOWN).astype(int)]]
    plain = torch.from_numpy(images).float() / 255
    filtered = Average()(plain)
    figure = Figure((WIDTH, WIDTH / 2))
    rows = {
        "x, poisoned": (plain, "gray", 0, 1),
        "h(x), filtered": (filtered, "gray", 0, 1),
        "x − h(x)": (plain - filtered, "RdBu_r", -SIZE, SIZE),
    }
    axes = figure.subplots(len(rows), SHOWN)
    for line, (name, (pictures, colours, low, high)) in zip(axes, rows.items(), strict=True):
        for cell, picture in zip(line, pictures, strict=True):
            cell.imshow(picture[0], cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            cell.set(xticks=[], yticks=[])
            cell.spines[["left", "bottom"]].set_visible(False)
            cell.grid(visible=False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def features(poisoned: Dataset, evidence: Evidence, findings: Findings) -> Figure:
    """Draw the features of the target class twice: by cluster, and by which images are poisoned."""
    label = poisoned.class_names.index(TARGET)
    rows = np.flatnonzero(evidence.labels == label)
    centred, _, axes = principal_axes(evidence.plain.features[rows])
    points = centred @ axes[:, :2]
    figure = Figure((WIDTH, WIDTH / 2.4))
    by_cluster, by_truth = figure.subplots(1, 2, sharex=True, sharey=True)
    clusters = findings.samples["cluster"].to_numpy()[rows]
    for number in np.unique(clusters):
        members = clusters == number
        by_cluster.plot(
            *points[members].T, ".", color=COLOURS[number % len(COLOURS)], markersize=3,
            label=f"cluster {number}: {members.sum()} images",
        )  # fmt: skip
    planted = poisoned.truth.poisoned[rows]
    for members, colour, name in ((~planted, GREY, "clean"), (planted, RED, "poisoned")):
        by_truth.plot(*points[members].T, ".", color=colour, markersize=3, label=f"{name}: {members.sum()} images")
    for axis, title in ((by_cluster, "clusters of the mixture"), (by_truth, "truth (unknown to the method)")):
        axis.set(title=title, xlabel="first principal axis")
        axis.legend(fontsize=7)
    by_cluster.set_ylabel("second principal axis")
    return figure


def bic(poisoned: Dataset, _: Evidence, findings: Findings) -> Figure:
    """Draw the criterion of every class against the number of components, minus its own lowest value."""
    figure = Figure((WIDTH / 1.5, WIDTH / 2.4))
    axis = figure.subplots()
    first = findings.curves[findings.curves["look"] == 1]
    for label, curve in first.groupby("class"):
        target = poisoned.class_names[label] == TARGET
        axis.plot(
            curve["components"], curve["criterion"] - curve["criterion"].min(), "o-", color=BLUE if target else GREY,
            alpha=1 if target else 0.4, zorder=3 if target else 2,
            label=f"class {TARGET}, poisoned" if target else None,
        )  # fmt: skip
    axis.plot([], [], "o-", color=GREY, alpha=0.4, label="other classes")
    axis.set(xlabel="components K", ylabel="criterion minus its lowest value, nats")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    return figure


def impurity(poisoned: Dataset, _: Evidence, findings: Findings) -> Figure:
    """Draw the impurity of every cluster of every class, with the threshold."""
    figure = Figure((WIDTH, WIDTH / 2.4))
    axis = figure.subplots()
    flagged = findings.clusters["flagged"].to_numpy(dtype=bool)
    for members, colour, marker, name in ((~flagged, GREY, "o", "not flagged"), (flagged, RED, "D", "flagged")):
        clusters = findings.clusters[members]
        axis.scatter(
            np.maximum(clusters["impurity"], LEAST), clusters["class"], s=np.sqrt(clusters["size"]) * 4, color=colour,
            marker=marker, alpha=0.7, label=name,
        )  # fmt: skip
    axis.axvline(findings.threshold, color=BLUE, linestyle="--", label="threshold")
    axis.set(xscale="log", xlabel=f"impurity S, nats (lower values are drawn at {LEAST})", ylabel="class")
    axis.set_yticks(range(len(poisoned.class_names)), poisoned.class_names)
    axis.legend(loc="upper center")
    return figure


def destinations(poisoned: Dataset, _: Evidence, findings: Findings) -> Figure:
    """Draw the classes to which the filter changes the decisions of the flagged cluster."""
    worst = findings.clusters.loc[findings.clusters["impurity"].idxmax()]
    figure = Figure((WIDTH / 1.5, WIDTH / 3.4))
    axis = figure.subplots()
    axis.bar(poisoned.class_names, worst["destinations"], color=RED)
    axis.set(xlabel="class after the filter", ylabel="images")
    return figure


DRAWN = (trigger, features, bic, impurity, destinations)
"""The functions whose pictures the document shows; each picture has the name of its function."""


def numbers(poisoned: Dataset, evidence: Evidence, findings: Findings) -> dict:
    """Return the numbers that the document states."""
    clusters = findings.clusters
    worst, others = clusters.loc[clusters["impurity"].idxmax()], clusters[~clusters["flagged"]]
    curves = findings.curves
    curve = curves[(curves["class"] == worst["class"]) & (curves["look"] == worst["look"])]
    return {
        "images": len(poisoned),
        "poisoned": int(poisoned.truth.poisoned.sum()),
        "class": worst["class_name"],
        "features": evidence.plain.features.shape[1],
        "dimensions": int(curve["dimensions"].iloc[0]),
        "components": int((clusters["class"] == worst["class"]).sum()),
        "clusters": len(clusters),
        "flagged": int(clusters["flagged"].sum()),
        "size": int(worst["size"]),
        "examined": int(worst["examined"]),
        "changed": float(worst["changed"]),
        "impurity": float(worst["impurity"]),
        "to": poisoned.class_names[int(np.argmax(worst["destinations"]))],
        "next": float(others["impurity"].max()),
        "next_class": others.loc[others["impurity"].idxmax(), "class_name"],
        "threshold": findings.threshold,
        "tpr": findings.truth["tpr"],
        "fpr": findings.truth["fpr_all_classes"],
        "versions": versions(),
    }


def table(values: dict) -> str:
    """Return the numbers as a Markdown table."""
    rows = {
        "images in the set; poisoned images among them": f"{values['images']}; {values['poisoned']}",
        f"features; directions to which class {values['class']} is reduced": (
            f"{values['features']}; {values['dimensions']}"
        ),
        f"components of class {values['class']}": values["components"],
        "clusters of all classes; flagged clusters": f"{values['clusters']}; {values['flagged']}",
        "images of the flagged cluster; those decided as labelled": f"{values['size']}; {values['examined']}",
        "share of the latter that the filter assigns to another class with confidence": f"{values['changed']:.3f}",
        "class to which most of them are assigned": values["to"],
        "impurity of the flagged cluster": f"{values['impurity']:.2f}",
        f"highest impurity of the other clusters (class {values['next_class']})": f"{values['next']:.4f}",
        "threshold": values["threshold"],
        "TPR; FPR, all classes": f"{values['tpr']:.3f}; {values['fpr']:.4f}",
    }
    return markdown(["number", "value"], list(rows.items()))


def main() -> None:
    results = run()
    PICTURES.mkdir(exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(PARAMETERS)
        for draw in DRAWN:
            path = PICTURES / f"{draw.__name__}.svg"
            draw(*results).savefig(path, metadata={"Date": None, "Creator": None})
    values = numbers(*results)
    (PICTURES / "numbers.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    write_marked(DOCUMENT, MARKS, table(values))
    print(table(values))


if __name__ == "__main__":
    main()
