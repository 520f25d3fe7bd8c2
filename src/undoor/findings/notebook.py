"""What a notebook shows of findings: a sentence and a table with pictures, as HTML."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from numpy.typing import NDArray

ROWS = 8
"""Of the table: the most suspicious clusters, or classes."""

PICTURES = 6
"""A row, at most."""

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
    """Return a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def groups(
    samples: pd.DataFrame, clusters: pd.DataFrame, class_names: Sequence[str]
) -> list[tuple[dict[str, Any], NDArray[np.int64]]]:
    """Return the rows of a notebook's table, the most suspicious first, each with the rows of its samples.

    These are the clusters, and classes where there are none. ``samples`` and ``clusters`` are those of findings.
    """
    if len(clusters):
        members = samples.groupby(["label", "cluster"]).indices
        table = clusters.sort_values("impurity", ascending=False, kind="stable").to_dict("records")
        return [(_of_cluster(row, class_names), np.asarray(members[row["class"], row["cluster"]])) for row in table]
    classes = []
    for label, indices in samples.groupby("label").indices.items():
        rows = np.asarray(indices)
        order = np.argsort(-samples["score"].to_numpy()[rows], kind="stable")
        highest, flagged = samples["score"].iloc[rows].max(), int(samples["flagged"].iloc[rows].sum())
        told: dict[str, Any] = {"class": class_names[int(str(label))], "images": len(rows), "flagged": flagged}
        classes.append(({**told, "highest score": f"{highest:.3f}"}, rows[order], highest))
    return [(told, rows) for told, rows, _ in sorted(classes, key=lambda one: -one[2])]


def _of_cluster(row: Mapping[Any, Any], class_names: Sequence[str]) -> dict[str, Any]:
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


def render(
    verdict: str,
    lead: str,
    rows: Sequence[tuple[Mapping[str, Any], NDArray[np.int64]]],
    pictures: Mapping[int, bytes],
) -> str:
    """Return a verdict and its table as HTML, every text escaped.

    Args:
        verdict: one word.
        lead: what is said beside it.
        rows: of ``groups``.
        pictures: PNG of samples, by their row.

    """

    def uris(members: NDArray[np.int64]) -> list[str]:
        return [png_uri(pictures[row]) for row in members.tolist() if row in pictures][:PICTURES]

    return _TEMPLATE.render(
        verdict=verdict,
        lead=lead,
        columns=list(rows[0][0]),
        rows=[(row, uris(members)) for row, members in rows[:ROWS]],
        pictures=pictures,
        left_out=max(len(rows) - ROWS, 0),
    )
