"""The tables of findings: their columns, and what these hold."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

SAMPLE_COLUMNS = ("id", "label", "predicted", "cluster", "score", "flagged")
CLUSTER_COLUMNS = (
    "class", "class_name", "cluster", "look", "size", "examined", "changed", "impurity", "destinations", "flagged",
)  # fmt: skip
CURVE_COLUMNS = ("class", "look", "dimensions", "components", "criterion")
VIEW_COLUMNS = ("filtered", "x", "y")

WHOLE, REAL, TRUE = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean


def _text(kind: pa.DataType) -> bool:
    # Of an empty table nothing says what it holds.
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _counts(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or (pa.types.is_list(kind) and pa.types.is_integer(kind.value_type)))


TYPES: dict[str, dict[str, Any]] = {
    "samples": {
        "id": _text, **dict.fromkeys(("label", "predicted", "cluster", "filtered"), WHOLE),
        **dict.fromkeys(("score", "x", "y"), REAL), "flagged": TRUE,
    },
    "clusters": {
        **dict.fromkeys(("class", "cluster", "look", "size", "examined"), WHOLE), "class_name": _text,
        "changed": REAL, "impurity": REAL, "destinations": _counts, "flagged": TRUE,
    },
    "curves": {**dict.fromkeys(CURVE_COLUMNS, WHOLE), "criterion": REAL},
}  # fmt: skip
"""What the columns of the written tables hold."""


def no_clusters() -> pd.DataFrame:
    """Return the table of clusters of a method that has none."""
    whole = dict.fromkeys(("class", "cluster", "look", "size", "examined"), int)
    types = {**whole, "changed": float, "impurity": float, "flagged": bool}
    return pd.DataFrame(columns=list(CLUSTER_COLUMNS)).astype(types)


def curve_table(rows: Sequence[tuple[int, int, int, int, float]] = ()) -> pd.DataFrame:
    """Return the table of criteria with these rows; a method without mixtures has none."""
    table = pd.DataFrame(list(rows), columns=list(CURVE_COLUMNS))
    return table.astype({**dict.fromkeys(CURVE_COLUMNS, int), "criterion": float})
