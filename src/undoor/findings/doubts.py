"""What makes the verdict of findings doubtful."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

LEARNED_SHARE = 0.9
"""If the network decides fewer than this share of the images as they are labelled, no other doubt is reported, because
all others would follow from it."""

SMALLEST_CLUSTER = 10
"""Smaller clusters are not reported: among so few images a large share of changes is no evidence."""

CHANGED_SHARE = 1 - np.exp(-0.5)
"""A cluster is reported if the filter changes more of its decisions. It is the share at which the paper flags it."""

MOST_CLUSTERS = 3
"""At most this many clusters are reported for each reason, the largest first."""


class Doubt(NamedTuple):
    """A reason to doubt the verdict: a sentence, and the class and cluster that it is about, if it is about one."""

    text: str
    cluster: tuple[int, int] | None = None


def doubts(samples: pd.DataFrame, clusters: pd.DataFrame, class_names: Sequence[str]) -> list[Doubt]:
    """Return the reasons to doubt the verdict of findings with these tables.

    There are three: the network has not learned the set; a cluster is mostly decided otherwise than labelled, so that
    hardly any decision is left to compare under the filter; a cluster is not flagged although the filter changes many
    of its decisions.
    """
    as_labelled = samples["predicted"] == samples["label"]
    if as_labelled.mean() < LEARNED_SHARE:
        return [
            Doubt(
                f"the network decides only {as_labelled.mean():.0%} of the images as they are labelled, and a backdoor "
                "that it has not learned cannot be found in it; train it longer, or on this very set; if it is your "
                "own network, check the order of its classes, which is alphabetical for a folder, and --mean and --std"
            )
        ]
    not_learned, changed = [], []
    rows_of_cluster = samples.groupby(["label", "cluster"]).indices
    for row in clusters.sort_values("size", ascending=False, kind="stable").to_dict("records"):
        label, cluster = row["class"], row["cluster"]
        members = samples.iloc[rows_of_cluster[label, cluster]]
        decided = members[members["predicted"] == label]
        name = f"cluster {cluster} of class {row['class_name']}"
        if len(members) < SMALLEST_CLUSTER:
            continue
        if len(decided) < len(members) / 2:
            text = (
                f"{len(members) - len(decided)} of {len(members)} images of {name} are decided otherwise than labelled,"
                f" most as {_most_frequent(members['predicted'], label, class_names)}; either their labels are wrong, "
                "or they are poisoned and the network has not learned it, and then the filter cannot show it; "
                "look at them, or train longer"
            )
            not_learned.append(Doubt(text, (label, cluster)))
        elif "filtered" in samples and not row["flagged"]:
            share = (decided["filtered"] != label).mean()
            if share > CHANGED_SHARE:
                text = (
                    f"the filter changes {share:.0%} of {len(decided)} decisions of {name}, most to "
                    f"{_most_frequent(decided['filtered'], label, class_names)}, but too few of these changes count "
                    "for the cluster to be flagged; look at it, or scan with --decision plain or another --filter"
                )
                changed.append(Doubt(text, (label, cluster)))
    return not_learned[:MOST_CLUSTERS] + changed[:MOST_CLUSTERS]


def _most_frequent(decisions: "pd.Series[int]", label: int, class_names: Sequence[str]) -> str:
    """Return the name of the most frequent decision that is not the label."""
    return class_names[int(decisions[decisions != label].mode().iloc[0])]
