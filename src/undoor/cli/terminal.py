"""What the command line shows: progress bars, tables and notices. Numbers come in, text goes out."""

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

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_machine = Console(quiet=True, highlight=False)


def use(*, quiet: bool, as_json: bool) -> None:
    """Say what of the following is printed: tables and progress unless quiet, or results as JSON."""
    out.quiet = quiet or as_json
    err.quiet = quiet
    _machine.quiet = not as_json


def print_result(result: Mapping[str, Any]) -> None:
    """Print a command's result as one JSON object if that is asked for; it holds plain values and paths."""
    text = json.dumps(result, indent=2, ensure_ascii=False, default=fspath)
    # A terminal obeys more than what JSON has to escape.
    plain = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    _machine.out(plain, highlight=False)


CLUSTERS = 5
"""Of the clusters, so many are shown: the most impure."""

QUERIES = 20
"""Of the queries that a guard has checked, so many are shown."""


ALIVE = 30.0
"""Seconds after which a long stage says how far it is where there is no terminal."""


class Stages:
    """A bar that shows the stages of a command one after another; where there is no terminal, plain lines."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._name = ""
        self._told = time.monotonic()

    def begin(self, name: str) -> None:
        """Show a stage of which only the time is known so far."""
        self._show(name, 0, None, "")

    def counting(self, name: str) -> Callable[[int, int], None]:
        """Return a function that is told how many of how many are done in this stage; with it the stage begins."""

        def show(done: int, total: int) -> None:
            self._show(name, done, total, f"{done}/{total}")
            if not err.is_terminal and time.monotonic() - self._told > ALIVE:
                self._told = time.monotonic()
                err.print(f"{name}: {done}/{total}", soft_wrap=True, markup=False)

        return show

    def training(self, name: str = "train") -> Callable[["Step"], None]:
        """Return a function that shows each training step: epoch, loss, accuracy and the time left.

        Where there is no terminal, a plain line is printed after every epoch instead.
        """

        def show(step: "Step") -> None:
            told = f"epoch {step.epoch}/{step.epochs}  loss {step.loss:.3f}  accuracy {step.accuracy:.3f}"
            self._show(name, (step.epoch - 1) * step.steps + step.step, step.epochs * step.steps, told)
            if not err.is_terminal and step.step == step.steps:
                err.print(f"{name}: {told}", soft_wrap=True, markup=False)

        return show

    def _show(self, name: str, done: int, total: int | None, told: str) -> None:
        if name != self._name:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(_plain(name), total=None, told="")
            self._name, self._told = name, time.monotonic()
        self._progress.update(self._progress.task_ids[0], total=total, completed=done, told=told)


@contextmanager
def stages(name: str = "") -> Iterator[Stages]:
    """Yield the bar of a command, which begins with the stage ``name``."""
    parts = (
        TextColumn("{task.description}"),
        BarColumn(12),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*parts, console=err, disable=not err.is_terminal or err.quiet, transient=True) as progress:
        bar = Stages(progress)
        if name:
            bar.begin(name)
        yield bar


@contextmanager
def counting_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is told how many of how many are done; until it is called, the bar only shows the time."""
    with stages(name) as bar:
        yield bar.counting(name)


@contextmanager
def bench_board() -> Iterator[Callable[["Board", "Step | None"], None]]:
    """Yield a function that shows what of a suite is done, running and left, with an estimate.

    Where there is no terminal, a plain line is printed whenever something begins, and of a training every 30 s.
    """
    with Live(console=err, auto_refresh=False, transient=True) as live:
        latest = 0.0

        def show(board: "Board", step: "Step | None") -> None:
            nonlocal latest
            pause = 0.5 if err.is_terminal else ALIVE
            if step is not None and time.monotonic() - latest < pause:
                return
            latest = time.monotonic()
            if err.is_terminal:
                live.update(_board_table(board, step), refresh=True)
            else:
                err.print(f"{board.running}{_epoch(step)} {_left(board)}", soft_wrap=True, markup=False)

        yield show


def _board_table(board: "Board", step: "Step | None") -> Group:
    table = Table()
    for name in ("cell", "victim", "findings", "retrained"):
        table.add_column(name, justify="left" if name == "cell" else "right", no_wrap=True)
    shown = list(board.cells.items())
    height = max(err.height - 8, 4)
    if len(shown) > height:  # what is done scrolls out
        begun = [k for k, (_, cell) in enumerate(shown) if cell.unfinished]
        first = min(begun[0] if begun else 0, len(shown) - height)
        shown = shown[first : first + height]
    for name, cell in shown:
        table.add_row(
            name,
            "done" if cell.victim else "",
            f"{cell.found}/{cell.contenders}",
            f"{cell.retrained}/{cell.retrainings}",
            style="" if cell.unfinished else "dim",
        )
    return Group(table, _plain(f"{board.running}{_epoch(step)} {_left(board)}"))


def _epoch(step: "Step | None") -> str:
    return "" if step is None else f", epoch {step.epoch}/{step.epochs}, accuracy {step.accuracy:.3f}"


def _left(board: "Board") -> str:
    seconds = board.seconds_left
    return "" if not seconds else f"(about {timedelta(seconds=round(seconds))} left)"


def print_board(board: "Board") -> None:
    """Print how much of a suite is done."""
    out.print(
        f"{board.done} of {len(board.cells)} cells done"
        + ("" if board.finished else "; give the command again to go on")
    )


def print_findings(findings: "Findings") -> None:
    """Print the verdict and, where the method has clusters, those of highest impurity."""
    flagged = int(findings.flagged.sum())
    where = f" in class {_plain(', '.join(findings.classes_flagged))}" if flagged else ""
    colour = "red" if flagged else "green"
    told = f"[bold {colour}]{findings.verdict}[/]: {flagged} of {len(findings.samples)} images flagged{where}"
    out.print(told, soft_wrap=True)

    if len(findings.clusters):
        _print_clusters(findings)
    if findings.truth is not None:
        rates = {name: value for name, value in findings.truth.items() if isinstance(value, float)}
        out.print("against the truth: " + ", ".join(f"{name} {value:.4f}" for name, value in rates.items()))


def _print_clusters(findings: "Findings") -> None:
    n = len(findings.clusters)
    more = "" if n <= CLUSTERS else f"; the first {CLUSTERS} of {n}"
    table = Table(title=f"clusters by impurity, threshold {findings.threshold:.3f}{more}", title_justify="left")
    for name in ("class", "cluster", "images", "changed", "impurity"):
        table.add_column(name, justify="left" if name == "class" else "right")
    table.add_column("flagged")
    for row in (
        findings.clusters.sort_values("impurity", ascending=False, kind="stable").head(CLUSTERS).to_dict("records")
    ):
        table.add_row(
            _short(row["class_name"], max(out.width - 60, 12)),  # what the numbers leave of the line
            str(row["cluster"]),
            str(row["size"]),
            f"{row['changed']:.1%}",
            f"{row['impurity']:.3f}",
            "yes" if row["flagged"] else "",
        )
    out.print(table)


def print_inspection(inspection: "Inspection") -> None:
    """Print the verdict, the p-values and the closest class pairs."""
    target = inspection.target
    colour = "green" if target is None else "red"
    where = "" if target is None else f" from {_plain(', '.join(inspection.sources))} to {_plain(target)}"
    p = ", ".join(f"{rule} {found.p:.3g}" for rule, found in inspection.inferences.items())
    out.print(
        f"[bold {colour}]{inspection.verdict}[/]{where}: p by rule {p}; {inspection.rule} decides", soft_wrap=True
    )
    table = Table(title="the smallest perturbations", title_justify="left")
    for name in ("from", "to", "norm", "share", "p", "detected"):
        table.add_column(name, justify="right" if name in ("norm", "share", "p") else "left")
    for row in inspection.pairs.sort_values("norm", kind="stable").head(5).to_dict("records"):
        numbers = f"{row['norm']:.3f}", f"{row['rate']:.0%}", f"{row['p']:.3g}"
        table.add_row(_plain(row["source"]), _plain(row["target"]), *numbers, "yes" if row["detected"] else "")
    out.print(table)


def print_guard(guard: "Guard") -> None:
    """Print what a guard watches."""
    table = Table(title=f"statistic {guard.kind}, threshold {guard.threshold:.3f}", title_justify="left")
    for name in ("input of layer", "dimensions", "components a class"):
        table.add_column(name, justify="left" if name == "input of layer" else "right")
    for layer, null in zip(guard.layers, guard.nulls, strict=True):
        low, high = min(null.components), max(null.components)
        table.add_row(_plain(layer), str(null.axes.shape[1]), str(low) if low == high else f"{low} to {high}")
    out.print(table)


def print_checked(table: "pd.DataFrame", threshold: float) -> None:
    """Print how many queries are rejected, and the most suspicious ones."""
    rejected = int(table["rejected"].sum())
    colour = "red" if rejected else "green"
    out.print(f"[bold {colour}]{rejected} of {len(table)} queries rejected[/], threshold {threshold:.3f}")
    shown = Table()
    for name in table.columns:
        shown.add_column(name, justify="right" if name == "statistic" else "left")
    for row in table.sort_values("statistic", ascending=False, kind="stable").head(QUERIES).to_dict("records"):
        shown.add_row(
            _plain(row["id"]), _plain(row["decision"]), f"{row['statistic']:.3f}", "yes" if row["rejected"] else ""
        )
    out.print(shown)
    if len(table) > QUERIES:
        out.print(f"the {QUERIES} of the highest statistic; --out FILE.parquet takes all")


def print_success(success: "Success") -> None:
    """Print clean accuracy and attack success rate."""
    out.print(f"clean accuracy {success['clean_accuracy']:.4f}")
    if success["attack_success_rate"] is not None:
        out.print(f"attack success rate {success['attack_success_rate']:.4f}")


def print_before_after(before: "Success", after: "Success") -> None:
    """Print one table with the network before and after cleaning."""
    table = Table()
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("clean accuracy", f"{before['clean_accuracy']:.4f}", f"{after['clean_accuracy']:.4f}")
    rates = [f"{s['attack_success_rate']:.4f}" for s in (before, after)]
    table.add_row("attack success rate", *rates)
    out.print(table)


def print_pruned(result: "Pruned") -> None:
    """Print how many channels are pruned, and how good the network is before, between and after."""
    channels = result.channels
    out.print(f"{result.count} of {channels.count} channels of {_plain(channels.convolution)} pruned", soft_wrap=True)
    table = Table()
    for name in ("network", "accuracy on images held out"):
        table.add_column(name, justify="left" if name == "network" else "right")
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


def _short(text: str, width: int) -> Text:
    """Return ``text`` without control characters, cut to so many columns."""
    short = Text("".join(c if c.isprintable() else "?" for c in text))
    short.truncate(width, overflow="ellipsis")
    return short


def _plain(text: str) -> str:
    """Return ``text`` without control characters and without meaning for rich."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("[", r"\[")
