"""The report of a suite: ``README.md``, ``report.html``, tables and figures, generated from the store alone."""

import re
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from undoor.errors import UndoorError, first_line, require_extra
from undoor.experiments.packed import Result
from undoor.experiments.report.clusters import MARGINS_EXPLAINED, MISSED_EXPLAINED, ablations, margins, missed
from undoor.experiments.report.detection import detection, every_cell
from undoor.experiments.report.html import render_bench
from undoor.experiments.report.moments import EXPLAINED, inspections_table, moments_table
from undoor.experiments.report.published import ORIGIN, TABLE_2
from undoor.experiments.report.results import WORKING, Results, frame, groups, read_results
from undoor.experiments.report.tables import MISSING, UNSURE, text
from undoor.experiments.report.victims import (
    NETWORKS_EXPLAINED,
    clean_sets,
    kept_networks,
    networks,
    published_accuracy,
    sizes_at_test_time,
)
from undoor.experiments.store import Store, digest
from undoor.safe.limits import JSON_BYTES, read_bytes
from undoor.storage.atomic import atomic, write_text

LEGEND = f"""\
Rates lie between 0 and 1. With several seeds the tables show median (lowest–highest), or one number if all seeds agree.
{MISSING} means that a number is not there yet or not defined.
An **oracle** is a setting that rests on something no defender knows: the target class, the poisoning rate or the truth.
The false-positive rate (FPR) is given twice: among the clean images of the target class, and among the clean images of
all classes. The area under the ROC curve (AUROC) is given twice as well: among all images, and among those labelled as
the target class. The first one favours oracles that leave all other classes alone.
{UNSURE} The attack success rate (ASR) is below {WORKING} with at least one seed. The attack does not work, and the
numbers in italics say nothing about a defense."""


def write_report(store: Store, suite_name: str, expected: Sequence[str] = (), *, dpi: int = 200) -> None:
    """Pack the results of a store and write tables, figures and the page of a suite into the store's folder.

    Args:
        store: the store; it may be incomplete.
        suite_name: results of other suites are packed, but not shown.
        expected: names of all cells of the suite, so that the report can say which are missing.
        dpi: resolution of the figures in PNG.

    """
    try:
        _write_report(store, suite_name, expected, dpi)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # The store reads any JSON object. Whether it is a result shows when it is used.
        raise UndoorError(
            f"{store.root} holds results that undoor did not write ({type(error).__name__}: {first_line(error)}); "
            "remove them, or choose another --out"
        ) from error


def _write_report(store: Store, suite_name: str, expected: Sequence[str], dpi: int) -> None:
    require_extra("matplotlib", "figures", "the figures of a suite")
    from undoor.experiments.report.figures import write_figures  # matplotlib is slow to import

    settings = read_results(store, suite_name)
    kept = kept_networks(settings[0]) if settings else []
    store.pack(kept)
    cells = pd.concat([frame([]), *(results.cells for results in settings)])
    with atomic(store.root / "cells.parquet") as temporary:
        cells.to_parquet(temporary, index=False)
    diverged = [result for result in store.all("diverged").values() if result["suite"] == suite_name]
    progress, drawn = _progress(settings, cells, expected, diverged), list[tuple[str, str]]()
    parts = [f"# Results of `undoor bench {suite_name}`", LEGEND, progress]
    for results in settings:
        suffix = "" if len(settings) == 1 else "-" + digest({"setting": results.setting})[:6]
        figures = write_figures(store.root / "figures", results, suffix, dpi)
        drawn += figures
        parts += _sections(results, suite_name, expected)
        if results is settings[0]:
            parts += ["### The networks", NETWORKS_EXPLAINED, networks(store, results, kept)]
        parts += ["### Figures", *(f"![{name}](figures/{name}.svg)\n\n{caption}" for name, caption in figures)]
    write_text(store.root / "report.html", render_bench(suite_name, settings, progress, drawn, store.root / "figures"))
    write_text(store.root / "README.md", "\n\n".join(part for part in [*parts, _notes(store)] if part) + "\n")


def _notes(store: Store) -> str:
    """Return the notes that somebody has written about these results; empty if there are none."""
    notes = store.root / "notes.md"
    if not notes.exists():
        return ""
    try:
        return read_bytes(notes, JSON_BYTES).decode().rstrip()
    except (OSError, ValueError) as error:
        raise UndoorError(f"{notes} cannot be read: {first_line(error)}; mend or remove it") from error


def _progress(
    settings: Sequence[Results], cells: pd.DataFrame, expected: Sequence[str], diverged: Sequence[Result]
) -> str:
    """Return how much of the suite is done, in sentences."""
    trained = {name for results in settings for name in results.victims["cell"]}
    progress = f"{len(trained)} cells have a victim."
    if expected:
        missing = [name for name in expected if name not in trained]
        progress = f"{len(expected) - len(missing)} of the suite's {len(expected)} cells have a victim. "
        progress += f"Missing: {', '.join(text(name) for name in missing)}." if missing else "None is missing."
    wanted = cells[cells["retrain"].fillna(value=False)]
    retrained = wanted["retrained_clean_accuracy"].notna().sum()
    parts = [
        progress,
        f"{retrained} of the {len(wanted)} retrainings that follow from the findings are done.",
        f"Each of the {len(cells)} findings (cell × defense × seed) is a row of `cells.parquet`.",
    ]
    parts += [
        f"A training of {text(result['name'])} (preset {text(result['recipe']['name'])}) diverged: "
        f"{text(result['problem'])}."
        for result in diverged
    ]
    return " ".join(parts)


def _sections(results: Results, suite: str, expected: Sequence[str]) -> Iterator[str]:
    """Yield the sections of one setting."""
    compared = suite == "paper"
    first = next(table.iloc[0] for table in (results.victims, results.cells, results.examined) if len(table))
    yield f"## {text(first['data'])}, preset {text(first['preset'])}, {first['epochs']} epochs"
    yield f"{text(results.setting)}."
    repeated = results.victims.loc[results.victims["cell"].duplicated(), "cell"].unique()
    if len(repeated):
        yield f"The store holds more than one victim of {', '.join(map(text, repeated))}; all of them are shown."
    yield "### Table 1: detection of the single-source attack"
    yield "The poster does not print the values of this table."
    yield detection(results, "single-source", _sizes(results, "single-source", expected), {})
    yield "### Table 2: detection of the multiple-source attack"
    yield f"Published: {ORIGIN}. " + (
        "The difference is ours minus the published value. The false-positive rates of SS and AC are compared among "
        "the clean images of the target class, those of CI among the clean images of all classes."
        if compared
        else "The results below are on other data and are not compared with the published ones."
    )
    published = TABLE_2 if compared else {}
    yield detection(
        results, "multiple-source", sorted({*_sizes(results, "multiple-source", expected), *published}), published
    )
    yield from ("### What CI misses", MISSED_EXPLAINED, missed(results))
    yield "### Every defense in every cell"
    yield from every_cell(results)
    yield from ("### Ablations: variants of CI", ablations(results))
    yield from ("### Size of the trigger at test time against size in training", sizes_at_test_time(results))
    yield from ("### Clean training sets", clean_sets(results), published_accuracy(results) if compared else "")
    yield from ("### Other moments: what each defense needs, finds and costs", EXPLAINED, moments_table(results))
    yield from ("Every inspected victim:", inspections_table(results))
    yield from ("### How wide the margin of CI is", MARGINS_EXPLAINED, margins(results))


def _sizes(results: Results, scenario: str, expected: Iterable[str]) -> list[float]:
    """Return the sizes of a scenario that have results or are expected."""
    matches = (re.fullmatch(rf"{scenario}-([0-9.]+)-s[0-9]+", name) for name in expected)
    with_results = {group.size for group in groups(results, scenario, keep_originals=True)}
    return sorted(with_results | {float(match[1]) for match in matches if match})
