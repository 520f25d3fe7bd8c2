"""What the defences that treat each class by itself share."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.evidence import Evidence


def rows_by_class(evidence: Evidence, classes: tuple[str, ...] | None) -> Mapping[int, NDArray[np.int64]]:
    """Return the rows of every class that has any, by label; of the named ``classes`` only, if given."""
    unknown = set(classes or ()) - set(evidence.class_names)
    if unknown:
        raise UndoorError(f"no class is called {min(unknown)!r}; there are {', '.join(evidence.class_names)}")
    members = {
        label: np.flatnonzero(evidence.labels == label)
        for label, name in enumerate(evidence.class_names)
        if classes is None or name in classes
    }
    return {label: rows for label, rows in members.items() if len(rows)}


def principal_axes(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the centred (n, t) features, their variances (r,) along the principal axes, and the axes (t, r).

    The axes are the right singular vectors of the centred features, the widest first. They come from the
    t × t Gram matrix, which costs a small part of a singular value decomposition of n rows. Axes along which
    only rounding varies are left out: r is the rank, 0 for constant features.
    """
    rows = features.astype(np.float64)
    mean_square = np.square(rows).sum() / len(rows)
    rows -= rows.mean(axis=0)
    variances, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    real = variances > 1e-12 * mean_square  # float32 holds standard deviations down to 1e-7 of the values
    return rows, variances[real][::-1], axes[:, real][:, ::-1]


def sample_table(
    evidence: Evidence, score: NDArray[np.float64], flagged: NDArray[np.bool_], cluster: NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """Return the table of samples of ``Findings``; the arguments are (N,), without clusters all are in cluster 0."""
    return pd.DataFrame(
        {
            "id": evidence.ids,
            "label": evidence.labels,
            "predicted": evidence.plain.decisions,
            "cluster": np.zeros(len(score), dtype=np.int64) if cluster is None else cluster,
            "score": score,
            "flagged": flagged,
        }
    )
