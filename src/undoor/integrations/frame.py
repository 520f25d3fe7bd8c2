"""Findings as a pandas frame with the columns of cleanlab's Datalab."""

import numpy as np
import pandas as pd

from undoor.findings.findings import Findings


def issues(findings: Findings) -> pd.DataFrame:
    """Return one row a sample, in the order of the data set.

    ``is_backdoor_issue`` is what the defense flagged; it is the verdict. ``backdoor_score`` is exp(−score) in [0, 1],
    and 1 where the defense's score is below 0: as with all scores of Datalab, low is severe. For Cluster Impurity it is
    exp(−impurity), the share of its decisions that the sample's cluster keeps under the filter. It has no common
    threshold, because what counts as low depends on the defense.

    Returns:
        A frame with the columns ``id``, ``given_label`` and ``predicted_label`` (class names), ``is_backdoor_issue``
        (bool) and ``backdoor_score`` (float).

    """
    names = np.array(findings.class_names, dtype=object)
    samples = findings.samples
    return pd.DataFrame(
        {
            "id": samples["id"].to_numpy(),
            "given_label": names[samples["label"].to_numpy()],
            "predicted_label": names[samples["predicted"].to_numpy()],
            "is_backdoor_issue": findings.flagged,
            "backdoor_score": np.exp(-np.maximum(samples["score"].to_numpy(dtype=np.float64), 0.0)),
        }
    )
