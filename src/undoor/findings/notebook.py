"""What a notebook shows of findings: a sentence and a table with pictures, as HTML."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from numpy.typing import NDArray

ROWS = 8
"""The table shows at most this many clusters (or classes), the most suspicious first."""

PICTURES = 6
"""Each row of the table shows at most this many pictures."""

Row = tuple[dict[str, Any], NDArray[np.int64]]
"""A row of the table: its cells by column, and the rows of its samples in the data set."""

_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<div><p><b>{{ verdict }}</b>: {{ lead }}</p>
<table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}
{% if pictures %}<th>pictures</th>{% endif %}</tr></thead>
<tbody>
{% for row, uris in rows %}
<tr>{% for name in columns %}<td>{{ row[name] }}</td>{% endfor %}{% if pictures %}<td style="white-space: nowrap">
{% for uri in uris %}
<img src="{{ uri }}" alt="" style="display: inline; width: 40px; image-rendering: pixelated">
{% endfor %}
</td>{% endif %}</tr>
{% endfor %}
</tbody></table>
{% if left_out %}<p>{{ left_out }} further rows are not shown.</p>{% endif %}
</div>""")


def png_uri(content: bytes) -> str:
    """Return a data URI that holds a PNG image."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def table_rows(samples: pd.DataFrame, clusters: pd.DataFrame, class_names: Sequence[str]) -> list[Row]:
    """Return all rows of the table, the most suspicious first: a row a cluster, or a class if there are no clusters.

    ``samples`` and ``clusters`` are the tables of findings.
    """
    if len(clusters):
        members = samples.groupby(["label", "cluster"]).indices
        ordered = clusters.sort_values("impurity", ascending=False, kind="stable").to_dict("records")
        return [
            (_cluster_cells(row, class_names), np.asarray(members[row["class"], row["cluster"]])) for row in ordered
        ]
    classes = []
    for label, indices in samples.groupby("label").indices.items():
        members_of_class = samples.iloc[indices]
        highest = members_of_class["score"].max()
        cells = {
            "class": class_names[int(str(label))],
            "images": len(indices),
            "flagged": int(members_of_class["flagged"].sum()),
            "highest score": f"{highest:.3f}",
        }
        order = np.argsort(-members_of_class["score"].to_numpy(), kind="stable")
        classes.append((highest, (cells, np.asarray(indices)[order])))
    return [row for _, row in sorted(classes, key=lambda pair: -pair[0])]


def _cluster_cells(row: Mapping[Any, Any], class_names: Sequence[str]) -> dict[str, Any]:
    counts = sorted(zip(row["destinations"], class_names, strict=True), key=lambda pair: -pair[0])
    return {
        "class": row["class_name"],
        "cluster": row["cluster"],
        "images": row["size"],
        "changed": f"{row['changed']:.1%}",
        "impurity": f"{row['impurity']:.3f}",
        "changed to": ", ".join(f"{name} ({count})" for count, name in counts[:3] if count),
        "flagged": "yes" if row["flagged"] else "",
    }


def render(verdict: str, lead: str, rows: Sequence[Row], pictures: Mapping[int, bytes]) -> str:
    """Return a verdict and its table as HTML, with every text escaped.

    Args:
        verdict: one word.
        lead: the sentence beside it.
        rows: what ``table_rows`` returns.
        pictures: PNG images of samples, by their row in the data set.

    """

    def uris(members: NDArray[np.int64]) -> list[str]:
        return [png_uri(pictures[row]) for row in members.tolist() if row in pictures][:PICTURES]

    return _TEMPLATE.render(
        verdict=verdict,
        lead=lead,
        columns=list(rows[0][0]),
        rows=[(cells, uris(members)) for cells, members in rows[:ROWS]],
        pictures=pictures,
        left_out=max(len(rows) - ROWS, 0),
    )
