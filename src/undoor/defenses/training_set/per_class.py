"""What the defenses that treat every class by itself share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from undoor.errors import UndoorError
from undoor.evidence import Evidence


def rows_by_class(evidence: Evidence, classes: tuple[str, ...] | None = None) -> Mapping[int, NDArray[np.int64]]:
    """Return the rows of every class that has any, by label; if ``classes`` names some, of these classes only."""
    unknown = set(classes or ()) - set(evidence.class_names)
    if unknown:
        raise UndoorError(f"no class is called {min(unknown)!r}; there are {', '.join(evidence.class_names)}")
    rows_of = {
        label: np.flatnonzero(evidence.labels == label)
        for label, name in enumerate(evidence.class_names)
        if classes is None or name in classes
    }
    return {label: rows for label, rows in rows_of.items() if len(rows)}


def principal_axes(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the centred (n, t) features, their variances (r,) along the principal axes, and the axes (t, r).

    The axes are the right singular vectors of the centred features, the widest first. They are computed from the
    t × t Gram matrix, which is much cheaper than a singular value decomposition of n rows. Axes along which only
    rounding errors vary are left out: r is the rank, 0 for constant features.
    """
    rows = features.astype(np.float64)
    mean_square = np.square(rows).sum() / len(rows)
    rows -= rows.mean(axis=0)
    variances, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    real = variances > 1e-12 * mean_square  # float32 resolves standard deviations down to 1e-7 of the values
    return rows, variances[real][::-1], axes[:, real][:, ::-1]


def sample_table(
    evidence: Evidence, score: NDArray[np.float64], flagged: NDArray[np.bool_], cluster: NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """Return the table of samples of ``Findings``. The arguments are (N,); without ``cluster`` all are in cluster 0."""
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


def cluster_row(
    class_names: tuple[str, ...],
    label: int,
    cluster: int,
    size: int,
    examined: int = 0,
    destinations: Sequence[int] | NDArray[np.int64] = (),
) -> dict[str, Any]:
    """Return a row of the table of clusters of ``Findings``, with impurity 0 and not flagged.

    ``examined`` is the number of decisions that were examined; ``destinations`` are the classes to which the changed
    ones went.
    """
    return {
        "class": label,
        "class_name": class_names[label],
        "cluster": cluster,
        "look": 1,
        "size": size,
        "examined": examined,
        "changed": len(destinations) / examined if examined else 0.0,
        "impurity": 0.0,
        "destinations": np.bincount(np.array(destinations, dtype=np.int64), minlength=len(class_names)).tolist(),
        "flagged": False,
    }
