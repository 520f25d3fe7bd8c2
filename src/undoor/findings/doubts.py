"""What a reader of findings should know that their verdict does not say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

LEARNED = 0.9
"""Share of images decided as labelled, below which the network is no witness, and all else follows from that."""

FEWEST = 10
"""Images of a cluster that is spoken of."""

FALLEN = 1 - np.exp(-0.5)
"""Share of decisions that the filter changes from which on the paper calls a cluster poisoned."""

MOST = 3
"""Clusters that are spoken of, of each kind, the largest first."""


class Doubt(NamedTuple):
    """A sentence, and the class and cluster that it is about, if it is about one."""

    text: str
    cluster: tuple[int, int] | None = None


def doubts(samples: pd.DataFrame, clusters: pd.DataFrame, class_names: Sequence[str]) -> list[Doubt]:
    """Return what makes the verdict of findings doubtful, from their tables.

    A network that has not learned the set; clusters that it decides otherwise than labelled, whose decisions are
    therefore not looked at under the filter; clusters that are not flagged although their decisions fall under it.
    """
    right = samples["predicted"] == samples["label"]
    if right.mean() < LEARNED:
        return [
            Doubt(
                f"the network decides only {right.mean():.0%} of the images as they are labelled: what it has not "
                "learned cannot be found in it; train it longer, or on this very set; if it is your own, check the "
                "order of its classes, which for a folder is alphabetical, and --mean and --std"
            )
        ]
    unlearned, fallen = [], []
    members = samples.groupby(["label", "cluster"]).indices
    for row in clusters.sort_values("size", ascending=False, kind="stable").to_dict("records"):
        key = row["class"], row["cluster"]
        mine = samples.iloc[members[key]]
        name, decided = f"cluster {key[1]} of class {row['class_name']}", mine[mine["predicted"] == mine["label"]]
        if len(mine) < FEWEST:
            continue
        if len(decided) < len(mine) / 2:
            text = (
                f"{len(mine) - len(decided)} of {len(mine)} images of {name} are decided otherwise than labelled, most "
                f"as {_most(mine['predicted'], key[0], class_names)}: they are labelled wrongly, or planted in a way "
                "that the network has not learned, which the filter cannot show; look at them, or train longer"
            )
            unlearned.append(Doubt(text, key))
        elif "filtered" in samples and not row["flagged"] and (decided["filtered"] != key[0]).mean() > FALLEN:
            text = (
                f"the filter changes {(decided['filtered'] != key[0]).mean():.0%} of {len(decided)} decisions of "
                f"{name}, most to {_most(decided['filtered'], key[0], class_names)}, too few of them in a way that "
                "counts for it to be flagged; look at it, or scan with --decision plain or another --filter"
            )
            fallen.append(Doubt(text, key))
    return unlearned[:MOST] + fallen[:MOST]


def _most(decisions: "pd.Series[int]", label: int, class_names: Sequence[str]) -> str:
    """Return the name of the most frequent decision that is not the label."""
    return class_names[int(decisions[decisions != label].mode().iloc[0])]
