"""What a store holds, for reading: ``README.md``, ``report.html``, ``cells.parquet`` and figures, from it alone."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from undoor.errors import UndoorError, first_line, require_extra
from undoor.experiments.condensed import MIXED
from undoor.experiments.report import published
from undoor.experiments.report.html import render_bench
from undoor.experiments.report.moments import EXPLAINED, inspections, moments
from undoor.experiments.report.tables import (
    MISSED,
    MISSING,
    WORKING,
    Results,
    difference,
    frame,
    markdown,
    places,
    read_results,
    shown,
    works,
)
from undoor.experiments.store import Result, Store, digest
from undoor.safe.limits import JSON_BYTES, read_bytes
from undoor.storage.atomic import atomic, write_text

COMPARED = {
    "SS, target class": "SS",
    "AC, smaller cluster of target class": "AC",
    "CI, poster": "CI",
    "CI": "CI",
    "SS": None,
    "AC": None,
}
"""The rows of Tables 1 and 2, and the published method each is comparable with.

The published SS and AC flag within the target class alone, which no defender knows: an oracle setting.
"""
MARGINS = ("CI", "CI, poster")
UNSURE = "†"

LEGEND = f"""\
Rates lie between 0 and 1. With several seeds: median (lowest–highest), or one number if they agree.
{MISSING}: not there yet, or not defined.
**oracle**: a setting that rests on something no defender knows (the target class, the poisoning rate, the truth).
The false-positive rate is given twice: among clean images of the target class, and among clean images of all classes.
So is the area under the ROC curve: among all images, and among those of the target class. The first flatters oracle
settings, which leave all other classes alone.
{UNSURE} the attack success rate (ASR) is below {WORKING} with some seed: the attack does not work, and what is in
italics says nothing about a defence."""


def write_report(store: Store, suite_name: str, expected: Sequence[str] = (), *, dpi: int = 200) -> None:
    """Write tables, figures and a page of what the store holds of a suite into the store's folder.

    Args:
        store: may be partial; what is missing is shown as –.
        suite_name: results of other suites are left out.
        expected: names of all cells of the suite, so that the report can say which are missing.
        dpi: of the figures as PNG.

    """
    try:
        _write_report(store, suite_name, expected, dpi)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # What is in the store was read as whole JSON; what it tells is only looked at where it is used.
        raise UndoorError(
            f"{store.root} holds results that undoor did not write ({type(error).__name__}: {first_line(error)}); "
            "remove them, or choose another --out"
        ) from error


def _write_report(store: Store, suite_name: str, expected: Sequence[str], dpi: int) -> None:
    require_extra("matplotlib", "figures", "the figures of a suite")
    from undoor.experiments.report.figures import write_figures  # matplotlib is slow to import

    every = read_results(store, suite_name)
    cells = pd.concat([frame([]), *(results.cells for results in every)])
    with atomic(store.root / "cells.parquet") as temporary:
        cells.to_parquet(temporary, index=False)
    diverged = [one for one in store.all("diverged").values() if one["suite"] == suite_name]
    told, drawn = _progress(every, expected, diverged), list[tuple[str, str]]()
    parts = [f"# Results of `undoor bench {suite_name}`", LEGEND, told]
    for results in every:
        suffix = "" if len(every) == 1 else "-" + digest({"setting": results.setting})[:6]
        figures = write_figures(store.root / "figures", results, suffix, dpi)
        drawn += figures
        parts += _sections(results, suite_name, expected)
        parts += ["### The networks", _networks(store, results)]
        parts += ["### Figures", *(f"![{name}](figures/{name}.svg)\n\n{caption}" for name, caption in figures)]
    write_text(store.root / "report.html", render_bench(suite_name, every, told, drawn, store.root / "figures"))
    notes = store.root / "notes.md"
    if notes.exists():
        try:
            parts.append(read_bytes(notes, JSON_BYTES).decode().rstrip())
        except (OSError, ValueError) as error:
            raise UndoorError(f"{notes} cannot be read: {first_line(error)}; mend or remove it") from error
    write_text(store.root / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _progress(every: list[Results], expected: Sequence[str], diverged: Sequence[Result]) -> str:
    done = {name for results in every for name in results.victims["cell"]}
    cells = pd.concat([frame([]), *(results.cells for results in every)])
    wanted = cells[cells["retrain"].fillna(value=False)]
    told = f"{len(done)} cells have a victim."
    if expected:
        missing = [name for name in expected if name not in done]
        told = f"{len(expected) - len(missing)} of the suite's {len(expected)} cells have a victim. " + (
            f"Missing: {', '.join(text(name) for name in missing)}." if missing else "None is missing."
        )
    return (
        f"{told} {wanted['retrained_clean_accuracy'].notna().sum()} of the {len(wanted)} retrainings after what was "
        f"found so far are done. Each of the {len(cells)} findings (cell × defence × seed) is a row of `cells.parquet`."
    ) + "".join(
        f" A training of {text(one['name'])} (preset {text(one['recipe']['name'])}) diverged: {text(one['problem'])}."
        for one in diverged
    )


def _sections(results: Results, suite: str, expected: Sequence[str]) -> Iterator[str]:
    compared = suite == "paper"
    first = pd.concat([results.victims, results.cells]).iloc[0]
    yield f"## {text(first['data'])}, preset {text(first['preset'])}, {first['epochs']} epochs"
    yield f"{text(results.setting)}."
    twice = results.victims.loc[results.victims["cell"].duplicated(), "cell"].unique()
    if len(twice):
        yield f"The store holds more than one victim of {', '.join(map(text, twice))}; all of them are shown."
    yield "### Table 1: detection of the single-source attack"
    yield "The poster does not print the values of this table."
    yield _detection(results, "single-source", _sizes(results, "single-source", expected), {})
    yield "### Table 2: detection of the multiple-source attack"
    yield f"Published: {published.ORIGIN}. " + (
        "Difference: ours minus published; the false-positive rates of SS and AC are compared among clean images of "
        "the target class, those of CI among those of all classes."
        if compared
        else "These results are of other data and are not compared with them."
    )
    against = published.TABLE_2 if compared else {}
    sizes = sorted({*_sizes(results, "multiple-source", expected), *against})
    yield _detection(results, "multiple-source", sizes, against)
    yield "### What CI misses"
    yield EXPLAINED_MISSED
    yield _missed(results)
    yield "### Every defence in every cell"
    yield from _every_cell(results)
    yield "### Ablations: variants of CI"
    yield _ablations(results)
    yield "### Size of the trigger at test time against size in training"
    yield _test_sizes(results)
    yield "### Clean training sets"
    yield _clean(results)
    if compared:
        accuracy = results.victims.loc[results.victims["scenario"] == "clean", "clean_accuracy"]
        yield (
            f"Clean accuracy of the networks trained on the clean set: {shown(accuracy, 4)}; published: "
            f"{published.CLEAN_ACCURACY}; difference: {difference(accuracy, published.CLEAN_ACCURACY, 4)}."
        )
    yield "### Other moments: what each defence needs, finds and costs"
    yield EXPLAINED
    header, lines = moments(results)
    yield _table(header, lines) + _rests_on(results.victims[results.victims["victim"].isin(_examined(results))])
    header, lines = inspections(results)
    yield "Every inspected victim:"
    yield _table(header, [[text(part) for part in line] for line in lines])
    yield "### How wide the margin of CI is"
    yield (
        "A cluster counts as poisoned if more than half of it is poison. CI tells them apart wherever the highest "
        "impurity of a clean cluster lies below the threshold and the lowest of a poisoned one above it."
    )
    yield _margins(results)


def _examined(results: Results) -> set[str]:
    return {one["victim"] for one in results.examined}


def _sizes(results: Results, scenario: str, expected: Iterable[str]) -> list[float]:
    found = {float(size) for size, _ in places(results.victims, scenario)}
    found |= {float(size) for size, _ in places(results.cells, scenario)}
    named = (re.fullmatch(rf"{scenario}-([0-9.]+)-s[0-9]+", name) for name in expected)
    return sorted(found | {float(match[1]) for match in named if match})


def _detection(
    results: Results, scenario: str, sizes: list[float], against: dict[float, dict[str, published.Rates]]
) -> str:
    """Return the (TPR, FPR) of what the paper compares, by size; beside what was published if it was."""
    victims, cells = dict(places(results.victims, scenario)), dict(places(results.cells, scenario))
    nobody = results.victims.iloc[:0]
    header = ["size", "ASR", "defence", "TPR", "FPR, target class", "FPR, all classes"]
    header += ["published TPR", "difference", "published FPR", "difference"] if against else []
    lines = []
    for size in sizes:
        attacked, found = victims.get(size, nobody), cells.get(size, nobody)
        for defense, method in COMPARED.items():
            rows = found[found["defense"] == defense]
            oracle = defense.endswith("target class")
            line = [f"{size:.2f}", _success(attacked), _named(defense, oracle), *_rates(rows, len(attacked))]
            if against:
                line += _beside(rows, against.get(size, {}).get(method or ""), method)
            lines.append(line if works(attacked) or not len(attacked) else _doubtful(line))
    return _table(header, lines) + _rests_on(results.cells[results.cells["scenario"] == scenario])


def _beside(rows: pd.DataFrame, rates: published.Rates | None, method: str | None) -> list[str]:
    if rates is None or method is None:
        return [MISSING] * 4
    denominator = published.DENOMINATOR[method]
    of = denominator.removeprefix("fpr_").replace("_", " ")
    return [
        f"{rates.tpr:.3f}",
        difference(rows["tpr"], rates.tpr),
        f"{rates.fpr:.3f} ({of})",
        difference(rows[denominator], rates.fpr),
    ]


def _rates(rows: pd.DataFrame, of: int) -> list[str]:
    digits = {"tpr": 3, "fpr_target_class": 4, "fpr_all_classes": 4}
    return [shown(rows[name], places, of) for name, places in digits.items()]


def _every_cell(results: Results) -> Iterator[str]:
    for scenario in ("single-source", "multiple-source"):
        for keep in (True, False):
            for size, attacked in places(results.victims, scenario, keep_originals=keep):
                found = dict(places(results.cells, scenario, keep_originals=keep)).get(size, results.cells.iloc[:0])
                replaced = "" if keep else ", originals replaced"
                yield f"#### {scenario}, size {size:.2f}{replaced}: ASR {_success(attacked)}, clean accuracy " + shown(
                    attacked["clean_accuracy"], 4
                )
                yield _defences(found[~_is_ablation(found)], attacked) + _rests_on(found if len(found) else attacked)


def _defences(found: pd.DataFrame, attacked: pd.DataFrame) -> str:
    """Return one row a defence; the controls are always there."""
    header = ["defence", "TPR", "FPR, target class", "FPR, all classes", "AUROC", "AUROC, target class", "precision"]
    header += ["ASR before", "ASR after", "accuracy before", "accuracy after", "seconds"]
    names = list(dict.fromkeys([*found["defense"], "random removal", "perfect removal"]))
    lines = []
    for name in names:
        rows, n = found[found["defense"] == name], len(attacked)
        line = [_named(name, name == "perfect removal" or bool(rows["oracle"].any())), *_rates(rows, n)]
        line += [shown(rows[name], 4, n) for name in ("auroc", "auroc_target_class")]
        line += [shown(rows["precision"], 3, n), _success(attacked)]
        line += [shown(rows["retrained_attack_success_rate"], 4, n), shown(attacked["clean_accuracy"], 4)]
        line += [shown(rows["retrained_clean_accuracy"], 4, n), shown(rows["seconds"], 1, n)]
        lines.append(line if works(attacked) else _doubtful(line))
    return _table(header, lines)


def _is_ablation(cells: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are of variants of CI that are tried in few cells."""
    return cells["defense"].str.startswith("CI, ") & ~cells["defense"].isin(MARGINS)


def _ablations(results: Results) -> str:
    """Return the variants of CI beside CI with the same seeds, and CI where the originals were replaced."""
    header = ["cell", "ASR", "variant", "filter", "TPR", "FPR, target class", "FPR, all classes", "AUROC"]
    header += ["highest clean impurity", "threshold", "lowest poisoned impurity"]
    cells, lines, used = results.cells, [], []
    for scenario in ("single-source", "multiple-source", "clean"):
        for keep in (True, False):
            for size, found in places(cells, scenario, keep_originals=keep):
                seeds = found.loc[_is_ablation(found) | (not keep), "seed"]
                attacked = dict(places(results.victims, scenario, keep_originals=keep)).get(size, found.iloc[:0])
                attacked = attacked[attacked["seed"].isin(seeds)]
                variants = found[(_is_ablation(found) | found["defense"].isin(MARGINS)) & found["seed"].isin(seeds)]
                for name in variants["defense"].unique():
                    rows = variants[variants["defense"] == name]
                    cell = scenario if scenario == "clean" else f"{scenario} {size:.2f}"
                    line = [cell + ("" if keep else ", originals replaced"), _success(attacked), text(name)]
                    line += [text(rows["filter"].iloc[0]), *_rates(rows, len(seeds.unique())), shown(rows["auroc"], 4)]
                    line += [shown(rows[column], 3) for column in IMPURITIES]
                    lines.append(line if scenario == "clean" or works(attacked) else _doubtful(line))
                used.append(variants)
    return _table(header, lines) + _rests_on(pd.concat(used or [frame([])]))


EXPLAINED_MISSED = f"""\
The poisoned images that CI does not flag, as counts. *Not learned*: the network does not decide them as they are
labelled. The others lie in clusters that are not flagged, of which more than half (*poisoned*), at least
{MIXED:.0%} (*mixed*) or fewer (*clean*) of the images are poisoned."""


def _missed(results: Results) -> str:
    header = ["cell", "ASR", "defence", "poisons", "missed", *MISSED.values()]
    lines = []
    for scenario in ("single-source", "multiple-source"):
        for keep in (True, False):
            victims = dict(places(results.victims, scenario, keep_originals=keep))
            for size, found in places(results.cells, scenario, keep_originals=keep):
                attacked = victims.get(size, found.iloc[:0])
                for name in MARGINS:
                    rows = found[found["defense"] == name]
                    cell = f"{scenario} {size:.2f}" + ("" if keep else ", originals replaced")
                    line = [cell, _success(attacked), name, *(shown(rows[column], 0) for column in ("count", "fn"))]
                    line += [shown(rows[column], 0, len(attacked)) for column in MISSED]
                    lines.append(line if works(attacked) else _doubtful(line))
    return _table(header, lines) + _rests_on(results.cells[results.cells["defense"].isin(MARGINS)])


IMPURITIES = ("highest_clean_impurity", "threshold", "lowest_poisoned_impurity")


def _test_sizes(results: Results) -> str:
    attacked = [one for one in results.attacked if one["attack_success_by_size"]]
    sizes = sorted({size for one in attacked for size in one["attack_success_by_size"]})
    lines = [
        [text(one["name"]), *(shown(pd.Series([one["attack_success_by_size"].get(size)])) for size in sizes)]
        for one in attacked
    ]
    names = [one["name"] for one in attacked]
    return _table(["trained with", *(f"ASR at {size}" for size in sizes)], lines) + _rests_on(
        results.victims[results.victims["cell"].isin(names)]
    )


def _clean(results: Results) -> str:
    header = ["defence", "called poisoned", "classes flagged", "highest impurity", "threshold", "false alarms"]
    header += ["FPR, all classes", "accuracy before", "accuracy after"]
    lines = []
    cells = results.cells[results.cells["scenario"] == "clean"]
    for name in cells["defense"].unique():
        rows = cells[cells["defense"] == name]
        classes = ", ".join(sorted({name for joined in rows["classes_flagged"] for name in joined.split(", ") if name}))
        lines.append(
            [
                _named(name, bool(rows["oracle"].any())),
                f"{(rows['flagged'] > 0).sum()} of {len(rows)}",
                text(classes) or "none",
                shown(rows["highest_clean_impurity"]),
                shown(rows["threshold"]),
                shown(rows["fp"], 0),
                shown(rows["fpr_all_classes"], 4),
                shown(rows["clean_accuracy"], 4),
                shown(rows["retrained_clean_accuracy"], 4),
            ]
        )
    return _table(header, lines) + _rests_on(cells)


def _margins(results: Results) -> str:
    header = ["cell", "ASR", "defence", "highest clean impurity", "threshold", "lowest poisoned impurity"]
    header += ["poisons in poisoned clusters", "clusters"]
    lines = []
    for scenario in ("single-source", "multiple-source", "clean"):
        for keep in (True, False):
            for size, found in places(results.cells, scenario, keep_originals=keep):
                attacked = dict(places(results.victims, scenario, keep_originals=keep)).get(size, found.iloc[:0])
                for name in MARGINS:
                    rows = found[found["defense"] == name]
                    cell = scenario if scenario == "clean" else f"{scenario} {size:.2f}"
                    line = [cell + ("" if keep else ", originals replaced"), _success(attacked), name]
                    line += [shown(rows[column], 3, len(attacked)) for column in IMPURITIES]
                    line += [shown(rows[column], 0) for column in ("poisons_in_poisoned_clusters", "clusters")]
                    lines.append(line if scenario == "clean" or works(attacked) else _doubtful(line))
    return _table(header, lines) + _rests_on(results.cells[results.cells["defense"].isin(MARGINS)])


def _networks(store: Store, results: Results) -> str:
    """Return where each victim lies, so that detection can be repeated without training."""
    lines = []
    for key in results.victims["victim"]:
        if store.path("victims", key, ".safetensors").exists():
            row = results.victims[results.victims["victim"] == key]
            line = [text(row["cell"].iloc[0]), f"[{key}](victims/{key}.safetensors)", _success(row)]
            lines.append([*line, shown(row["clean_accuracy"], 4)])
    return (
        "The command that made these results, given again with this folder, repeats the detection on these networks "
        "without training them; `undoor scan` takes any of them as `--model`.\n\n"
        + _table(["cell", "file", "ASR", "clean accuracy"], lines)
    )


def _success(attacked: pd.DataFrame) -> str:
    """Return the attack success rate, marked where the attack does not work."""
    rate = shown(attacked["attack_success_rate"])
    return rate if rate == MISSING or works(attacked) else f"{rate} {UNSURE}"


def _named(defense: str, oracle: bool) -> str:
    return text(defense) + (" **oracle**" if oracle else "")


def _doubtful(line: list[str]) -> list[str]:
    return [part if part == MISSING else f"*{part}*" for part in line]


def _rests_on(rows: pd.DataFrame) -> str:
    """Return what a table rests on, as its last line."""
    if not len(rows):
        return ""

    def all_of(values: "pd.Series[Any]") -> str:
        known = sorted(set(values.dropna()))
        return ", ".join(value if isinstance(value, str) else f"{value:,}" for value in known)

    clean = all_of(rows["samples"] - rows["count"])
    return (
        f"\n\n<sub>{text(all_of(rows['setting']))}; seeds {all_of(rows['seed'])}; {all_of(rows['count'])} poisons"
        f"{f' beside {clean} clean images' if clean else ''}; {text(all_of(rows['hardware']))}; "
        f"{text(all_of(rows['versions']))}</sub>"
    )


def _table(header: list[str], lines: list[list[str]]) -> str:
    return markdown(header, lines) if lines else "Nothing yet."


def text(value: str) -> str:
    """Return a name as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", html.escape(" ".join(value.split()), quote=False))
