"""The tables of findings: their columns, and the types of these."""

from collections.abc import Callable, Sequence

import pandas as pd
import pyarrow as pa

SAMPLE_COLUMNS = ("id", "label", "predicted", "cluster", "score", "flagged")
"""The columns that every defense fills in for every sample."""

REPORT_COLUMNS = ("filtered", "x", "y")
"""Further columns that only the report shows: the decision on the filtered image, and the place on a map."""

CLUSTER_COLUMNS = (
    "class", "class_name", "cluster", "look", "size", "examined", "changed", "impurity", "destinations", "flagged",
)  # fmt: skip
CURVE_COLUMNS = ("class", "look", "dimensions", "components", "criterion")

_CLUSTER_INTEGERS = ("class", "cluster", "look", "size", "examined")

is_integer, is_real, is_boolean = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean


def _is_text(kind: pa.DataType) -> bool:
    # An empty table does not say what type its columns have.
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _is_list_of_integers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_null(kind) or (pa.types.is_list(kind) and is_integer(kind.value_type)))


TYPES: dict[str, dict[str, Callable[[pa.DataType], bool]]] = {
    "samples": {
        "id": _is_text, **dict.fromkeys(("label", "predicted", "cluster", "filtered"), is_integer),
        **dict.fromkeys(("score", "x", "y"), is_real), "flagged": is_boolean,
    },
    "clusters": {
        **dict.fromkeys(_CLUSTER_INTEGERS, is_integer), "class_name": _is_text,
        "changed": is_real, "impurity": is_real, "destinations": _is_list_of_integers, "flagged": is_boolean,
    },
    "curves": {**dict.fromkeys(CURVE_COLUMNS, is_integer), "criterion": is_real},
}  # fmt: skip
"""For each written table, a test of the type of each column."""


def no_clusters() -> pd.DataFrame:
    """Return the table of clusters of a method that has none."""
    types = {**dict.fromkeys(_CLUSTER_INTEGERS, int), "changed": float, "impurity": float, "flagged": bool}
    return pd.DataFrame(columns=list(CLUSTER_COLUMNS)).astype(types)


def curve_table(rows: Sequence[tuple[int, int, int, int, float]] = ()) -> pd.DataFrame:
    """Return the table of criteria with these rows; a method without mixtures has none."""
    table = pd.DataFrame(list(rows), columns=list(CURVE_COLUMNS))
    return table.astype({**dict.fromkeys(CURVE_COLUMNS, int), "criterion": float})
