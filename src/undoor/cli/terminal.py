"""Everything that the command line prints: progress bars, tables and lines.

Texts that come from data, such as class names, stay text: their square brackets are no markup for rich, and a question
mark stands for each control character, which a terminal would obey.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from os import fspath
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from undoor.defenses.post_training import Pruned
    from undoor.defenses.post_training.inspection import Inspection
    from undoor.defenses.test_time import Guard
    from undoor.experiments.measure import Success
    from undoor.experiments.runner import Board
    from undoor.findings.findings import Findings
    from undoor.networks.training import Step

CLUSTERS_SHOWN = 5
"""The number of clusters in the table of findings; those with the highest impurity are shown."""

QUERIES_SHOWN = 20
"""The number of queries in the table of a guard; those with the highest statistic are shown."""

SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal, a long stage prints its progress at most once in this many seconds."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_json = Console(quiet=True, highlight=False)


def set_output(*, quiet: bool, as_json: bool) -> None:
    """Choose what is printed: tables and progress (neither if quiet), and results as text or as JSON."""
    out.quiet = quiet or as_json
    err.quiet = quiet
    _json.quiet = not as_json


def print_line(text: str) -> None:
    """Print text as it is; lines that are too long are left to the terminal to wrap."""
    out.print(text, soft_wrap=True, markup=False)


def print_result(result: Mapping[str, Any]) -> None:
    """Print a command's result, plain values and paths, as one JSON object if --json is given."""
    text = json.dumps(result, indent=2, ensure_ascii=False, default=fspath)
    # JSON does not have to escape all the characters that a terminal obeys.
    escaped = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    _json.out(escaped, highlight=False)


class Stages:
    """A progress bar that shows the stages of a command one after another; plain lines where there is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._name = ""
        self._last_line = time.monotonic()

    def begin(self, name: str) -> None:
        """Show a stage whose length is not known yet."""
        self._show(name, 0, None, "")

    def counting(self, name: str) -> Callable[[int, int], None]:
        """Return a function that shows how many items of how many are done; its first call begins the stage."""

        def show(done: int, total: int) -> None:
            self._show(name, done, total, f"{done}/{total}")
            if not err.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                _print_progress(f"{name}: {done}/{total}")

        return show

    def training(self, name: str = "train") -> Callable[["Step"], None]:
        """Return a function that shows a training step: epoch, loss, accuracy and the remaining time.

        Where there is no terminal, a line is printed after every epoch instead.
        """

        def show(step: "Step") -> None:
            message = f"epoch {step.epoch}/{step.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.3f}"
            self._show(name, (step.epoch - 1) * step.steps + step.step, step.epochs * step.steps, message)
            if not err.is_terminal and step.step == step.steps:
                _print_progress(f"{name}: {message}")

        return show

    def _show(self, name: str, done: int, total: int | None, message: str) -> None:
        if name != self._name:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(_plain(name), total=None, message="")
            self._name, self._last_line = name, time.monotonic()
        self._progress.update(self._progress.task_ids[0], total=total, completed=done, message=message)


@contextmanager
def stages(name: str = "") -> Iterator[Stages]:
    """Yield the progress bar of a command, which begins with the stage ``name``."""
    message = TextColumn("{task.fields[message]}")
    columns = TextColumn("{task.description}"), BarColumn(12), message, TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal or err.quiet, transient=True) as progress:
        bar = Stages(progress)
        if name:
            bar.begin(name)
        yield bar


@contextmanager
def counting_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many items of how many are done; before its first call the bar shows the time."""
    with stages(name) as bar:
        yield bar.counting(name)


@contextmanager
def bench_board() -> Iterator[Callable[["Board", "Step | None"], None]]:
    """Yield a function that shows which cells of a suite are done, what is running, and an estimate of the time left.

    Where there is no terminal, a line is printed whenever something begins, and every 30 s during a training.
    """
    with Live(console=err, auto_refresh=False, transient=True) as live:
        last_shown = 0.0

        def show(board: "Board", step: "Step | None") -> None:
            nonlocal last_shown
            pause = 0.5 if err.is_terminal else SECONDS_BETWEEN_LINES
            if step is not None and time.monotonic() - last_shown < pause:
                return
            last_shown = time.monotonic()
            if err.is_terminal:
                live.update(_board_table(board, step), refresh=True)
            else:
                _print_progress(_running(board, step))

        yield show


def _print_progress(line: str) -> None:
    err.print(line, soft_wrap=True, markup=False)


def _board_table(board: "Board", step: "Step | None") -> Group:
    table = _table("<cell", "victim", "findings", "retrained", no_wrap=True)
    rows = list(board.cells.items())
    height = max(err.height - 8, 4)
    if len(rows) > height:  # finished cells scroll out at the top
        unfinished = [k for k, (_, cell) in enumerate(rows) if cell.unfinished]
        first = min(unfinished[0] if unfinished else 0, len(rows) - height)
        rows = rows[first : first + height]
    for name, cell in rows:
        table.add_row(
            name,
            "done" if cell.victim else "",
            f"{cell.found}/{cell.contenders}",
            f"{cell.retrained}/{cell.retrainings}",
            style="" if cell.unfinished else "dim",
        )
    return Group(table, _plain(_running(board, step)))


def _running(board: "Board", step: "Step | None") -> str:
    """Return what a suite is working on, how far it is, and an estimate of the time left."""
    epoch = "" if step is None else f", epoch {step.epoch}/{step.epochs}, accuracy {step.accuracy:.3f}"
    seconds = board.seconds_left
    return f"{board.running}{epoch}" + (f" (about {timedelta(seconds=round(seconds))} left)" if seconds else "")


def print_board(board: "Board") -> None:
    """Print how many cells of a suite are done."""
    advice = "" if board.finished else "; give the same command again to continue"
    print_line(f"{board.done} of {len(board.cells)} cells done{advice}")


def print_findings(findings: "Findings") -> None:
    """Print the verdict and, if the defense forms clusters, those with the highest impurity."""
    flagged = int(findings.flagged.sum())
    classes = f" in class {_plain(', '.join(findings.classes_flagged))}" if flagged else ""
    _print_verdict(findings.verdict, f": {flagged} of {len(findings.samples)} images flagged{classes}", bad=flagged > 0)
    if len(findings.clusters):
        _print_clusters(findings)
    if findings.truth is not None:
        rates = {name: value for name, value in findings.truth.items() if isinstance(value, float)}
        print_line("against the truth: " + ", ".join(f"{name} {value:.4f}" for name, value in rates.items()))


def _print_verdict(verdict: str, details: str, *, bad: bool) -> None:
    """Print a verdict in red if it is bad, else in green, and its details, in which markup is escaped."""
    out.print(f"[bold {'red' if bad else 'green'}]{verdict}[/]{details}", soft_wrap=True)


def _print_clusters(findings: "Findings") -> None:
    n = len(findings.clusters)
    part = "" if n <= CLUSTERS_SHOWN else f"; the first {CLUSTERS_SHOWN} of {n}"
    title = f"clusters by impurity, threshold {findings.threshold:.3f}{part}"
    table = _table("<class", "cluster", "images", "changed", "impurity", "<flagged", title=title)
    for row in _highest(findings.clusters, "impurity", CLUSTERS_SHOWN):
        table.add_row(
            _short(row["class_name"], max(out.width - 60, 12)),  # the width that the numbers leave
            str(row["cluster"]),
            str(row["size"]),
            f"{row['changed']:.1%}",
            f"{row['impurity']:.3f}",
            "yes" if row["flagged"] else "",
        )
    out.print(table)


def print_inspection(inspection: "Inspection") -> None:
    """Print the verdict, the p-values and the class pairs with the smallest perturbations."""
    target = inspection.target
    pair = "" if target is None else f" from {_plain(', '.join(inspection.sources))} to {_plain(target)}"
    p = ", ".join(f"{rule} {found.p:.3g}" for rule, found in inspection.inferences.items())
    _print_verdict(inspection.verdict, f"{pair}: p by rule {p}; {inspection.rule} decides", bad=target is not None)
    table = _table("<from", "<to", "norm", "share", "p", "<detected", title="the smallest perturbations")
    for row in inspection.pairs.sort_values("norm", kind="stable").head(5).to_dict("records"):
        numbers = f"{row['norm']:.3f}", f"{row['rate']:.0%}", f"{row['p']:.3g}"
        table.add_row(_plain(row["source"]), _plain(row["target"]), *numbers, "yes" if row["detected"] else "")
    out.print(table)


def print_guard(guard: "Guard") -> None:
    """Print the layers that a guard watches, and its threshold."""
    title = f"statistic {guard.kind}, threshold {guard.threshold:.3f}"
    table = _table("<input of layer", "dimensions", "components per class", title=title)
    for layer, null in zip(guard.layers, guard.nulls, strict=True):
        low, high = min(null.components), max(null.components)
        table.add_row(_plain(layer), str(null.axes.shape[1]), str(low) if low == high else f"{low} to {high}")
    out.print(table)


def print_checked(queries: "pd.DataFrame", threshold: float) -> None:
    """Print how many queries are rejected, and those with the highest statistic."""
    rejected = int(queries["rejected"].sum())
    _print_verdict(f"{rejected} of {len(queries)} queries rejected", f", threshold {threshold:.3f}", bad=rejected > 0)
    table = _table("<id", "<decision", "statistic", "<rejected")
    for row in _highest(queries, "statistic", QUERIES_SHOWN):
        table.add_row(
            _plain(row["id"]), _plain(row["decision"]), f"{row['statistic']:.3f}", "yes" if row["rejected"] else ""
        )
    out.print(table)
    if len(queries) > QUERIES_SHOWN:
        print_line(f"the {QUERIES_SHOWN} with the highest statistic; --out FILE.parquet writes all")


def print_success(success: "Success") -> None:
    """Print clean accuracy and attack success rate."""
    print_line(f"clean accuracy {success['clean_accuracy']:.4f}")
    if success["attack_success_rate"] is not None:
        print_line(f"attack success rate {success['attack_success_rate']:.4f}")


def print_before_after(before: "Success", after: "Success") -> None:
    """Print clean accuracy and attack success rate of the network before and after the removal."""
    table = _table("<", "before", "after")
    for name, key in (("clean accuracy", "clean_accuracy"), ("attack success rate", "attack_success_rate")):
        table.add_row(name, *(f"{success[key]:.4f}" for success in (before, after)))  # type: ignore[literal-required]
    out.print(table)


def print_pruned(result: "Pruned") -> None:
    """Print how many channels are pruned, and the accuracies before pruning, after it and after fine-tuning."""
    channels = result.channels
    print_line(f"{result.count} of {channels.count} channels of {_printable(channels.convolution)} pruned")
    table = _table("<network", "accuracy on images held out")
    measured = result.measured or {}
    rows = {name: [f"{value:.4f}"] for name, value in result.accuracies.items()}
    for column in ("clean_accuracy", "attack_success_rate"):
        if any(success[column] is not None for success in measured.values()):
            table.add_column(column.replace("_", " "), justify="right")
            for name, cells in rows.items():
                cells.append(f"{measured[name][column]:.4f}")
    for name, cells in rows.items():
        table.add_row({"pruned": "after pruning", "tuned": "after fine-tuning"}.get(name, name), *cells)
    out.print(table)


def _table(*columns: str, title: str | None = None, no_wrap: bool = False) -> Table:
    """Return an empty table; a column is aligned left if its name is given with a < before it, else right."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name.removeprefix("<"), justify="left" if name[0] == "<" else "right", no_wrap=no_wrap)
    return table


def _highest(table: "pd.DataFrame", column: str, count: int) -> list[dict[Any, Any]]:
    """Return the rows with the highest values in a column, the highest first."""
    return table.sort_values(column, ascending=False, kind="stable").head(count).to_dict("records")


def _short(text: str, width: int) -> Text:
    """Return ``text`` without control characters, cut to ``width`` columns of a terminal."""
    short = Text(_printable(text))
    short.truncate(width, overflow="ellipsis")
    return short


def _plain(text: str) -> str:
    """Return ``text`` without control characters, and with square brackets that rich does not take for markup."""
    return _printable(text).replace("[", r"\[")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
