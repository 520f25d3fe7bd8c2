"""The command ``undoor bench``."""

from pathlib import Path
from typing import Annotated

import typer

from undoor.cli.options import EngineKind, Epochs, Gpus, Workers, seconds, whole_numbers
from undoor.errors import require_extra


def bench(
    suite: Annotated[str, typer.Argument(help="quick (embedded digits) or paper (CIFAR-10)", metavar="SUITE")],
    out: Annotated[Path, typer.Option(help="the folder for results, tables and figures; an earlier run is resumed")],
    data: Annotated[
        str | None, typer.Option(help="for paper: CIFAR-10, a folder with its training and test split")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="of the trainings; by default the suite's")] = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="N,N,N: every cell is repeated with each")] = "0",
    cells: Annotated[
        str, typer.Option(help="patterns with commas, such as 'multiple-source-*': only these cells")
    ] = "*",
    contenders: Annotated[
        str, typer.Option(help="patterns with commas, such as 'ci,ss*,perfect-removal': only these defences")
    ] = "*",
    stages: Annotated[
        str, typer.Option(help="those of victims, findings, retraining and examinations that are worked on")
    ] = "victims,findings,retraining,examinations",
    capture: Annotated[
        bool, typer.Option("--capture/--eager", help="on a GPU: launch a step at once, or kernel by kernel")
    ] = True,
    time_budget: Annotated[
        str | None, typer.Option(help="such as 90s, 25m or 3h: stop in time; the same command goes on")
    ] = None,
    engine: EngineKind = "local",
    workers: Workers = None,
    gpus: Gpus = 0.0,
) -> None:
    """Measure attacks and defences on a grid of experiments; write tables and figures.

    Example: undoor bench quick --seeds 0,1,2 --time-budget 25m --out results
    """
    require_extra("matplotlib", "figures", "undoor bench")
    from undoor.cli import terminal
    from undoor.engine import Engine
    from undoor.experiments.report.readme import write_report
    from undoor.experiments.runner import Bench
    from undoor.experiments.store import Store
    from undoor.experiments.suites import suite as make

    budget = seconds(time_budget)
    chosen_engine = Engine(engine, workers, gpus)  # type: ignore[arg-type] # which it checks
    chosen = make(
        suite,
        data=data,
        preset=preset,
        epochs=epochs,
        seeds=whole_numbers(seeds),
        cells=cells,
        contenders=contenders.split(","),
    )
    store = Store(out)
    with terminal.bench_board() as on_change:
        board = Bench(
            chosen,
            store,
            tuple(stages.split(",")),  # type: ignore[arg-type] # which it checks
            budget,
            capture=capture,
            engine=chosen_engine,
            on_change=on_change,
        ).run()
    write_report(store, suite, chosen.grid)
    terminal.print_board(board)
    terminal.print_result(
        {"finished": board.finished, "cells": len(board.cells), "cells_done": board.done, "tables": out / "README.md"}
    )
    terminal.out.print(f"tables: {out / 'README.md'}", soft_wrap=True, markup=False)
