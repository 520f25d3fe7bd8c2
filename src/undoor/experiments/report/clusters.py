"""The tables about CI: what it misses, what its variants find, and how far its clusters lie from the threshold."""

import pandas as pd

from undoor.experiments.outcome import MIXED
from undoor.experiments.report.results import MISSED, Results, frame, groups
from undoor.experiments.report.tables import RATE_HEADINGS, marked, rates, shown, success, table, text

SHOWN = ("CI", "CI, poster")
"""The forms of CI that are shown in all cells. Other variants are run in few cells."""

IMPURITIES = ("highest_clean_impurity", "threshold", "lowest_poisoned_impurity")
IMPURITY_HEADINGS = ("highest clean impurity", "threshold", "lowest poisoned impurity")

MISSED_EXPLAINED = f"""\
The numbers of poisoned images that CI does not flag. *Not learned*: the network does not decide them as they are
labelled. The others lie in clusters that are not flagged. In a *poisoned* cluster more than half of the images are
poisoned, in a *mixed* cluster at least {MIXED:.0%}, in a *clean* cluster fewer."""

MARGINS_EXPLAINED = """\
A cluster counts as poisoned if more than half of its images are poisoned. CI separates poisoned clusters from clean
ones if the highest impurity of a clean cluster lies below the threshold and the lowest of a poisoned one above it."""


def is_variant_of_ci(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are of variants of CI that are run in few cells."""
    return cells["defense"].str.startswith("CI, ") & ~cells["defense"].isin(SHOWN)


def missed(results: Results) -> str:
    """Return for every attacked cell why CI does not flag some poisoned images."""
    lines = []
    for name, _, victims, cells in groups(results, "single-source", "multiple-source"):
        for defense in SHOWN if len(cells) else ():
            rows = cells[cells["defense"] == defense]
            line = [name, success(victims), defense, *(shown(rows[column], 0) for column in ("count", "fn"))]
            line += [shown(rows[column], 0, len(victims)) for column in MISSED]
            lines.append(marked(line, victims))
    header = ["cell", "ASR", "defense", "poisoned images", "missed", *MISSED.values()]
    return table(header, lines, results.cells[results.cells["defense"].isin(SHOWN)])


def ablations(results: Results) -> str:
    """Return the variants of CI beside CI with the same seeds, and CI in cells whose originals were replaced."""
    lines, used = [], [frame([])]
    for name, _, victims, cells in groups(results):
        seeds = cells.loc[is_variant_of_ci(cells) | ~cells["keep_originals"], "seed"]
        attacked = victims[victims["seed"].isin(seeds)]
        variants = cells[(is_variant_of_ci(cells) | cells["defense"].isin(SHOWN)) & cells["seed"].isin(seeds)]
        for variant in variants["defense"].unique():
            rows = variants[variants["defense"] == variant]
            line = [name, success(attacked), text(variant), text(rows["filter"].iloc[0])]
            line += [*rates(rows, seeds.nunique()), shown(rows["auroc"], 4)]
            lines.append(marked([*line, *(shown(rows[column]) for column in IMPURITIES)], attacked))
        used.append(variants)
    header = ["cell", "ASR", "variant", "filter", *RATE_HEADINGS, "AUROC", *IMPURITY_HEADINGS]
    return table(header, lines, pd.concat(used))


def margins(results: Results) -> str:
    """Return the impurities of clean and poisoned clusters on both sides of the threshold."""
    lines = []
    for name, _, victims, cells in groups(results):
        for defense in SHOWN if len(cells) else ():
            rows = cells[cells["defense"] == defense]
            line = [name, success(victims), defense, *(shown(rows[column], 3, len(victims)) for column in IMPURITIES)]
            line += [shown(rows[column], 0) for column in ("poisons_in_poisoned_clusters", "clusters")]
            lines.append(marked(line, victims))
    header = ["cell", "ASR", "defense", *IMPURITY_HEADINGS, "poisoned images in poisoned clusters", "clusters"]
    return table(header, lines, results.cells[results.cells["defense"].isin(SHOWN)])
