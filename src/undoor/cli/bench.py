"""The command ``undoor bench``."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from undoor.cli.options import EngineOptions
from undoor.cli.values import seconds, whole_numbers
from undoor.errors import require_extra


def bench(
    suite: Annotated[str, Argument(help="quick (digits, built in) or paper (CIFAR-10).", metavar="SUITE")],
    *,
    out: Annotated[Path, Option(help="Folder for results, tables and figures. An earlier run in it is continued.")],
    data: Annotated[str | None, Option(help="For paper: the folder of CIFAR-10, with both splits.")] = None,
    preset: Annotated[str | None, Option(help="Training schedule. By default the suite's.")] = None,
    epochs: Annotated[int | None, Option(min=1, metavar="N", help="Epochs of every training.")] = None,
    seeds: Annotated[str, Option(metavar="N,N,N", help="Seeds; every cell is repeated with each.")] = "0",
    cells: Annotated[str, Option(help="Only cells whose names match, such as 'multiple-source-*,clean-s0'.")] = "*",
    contenders: Annotated[str, Option(help="Only defenses whose names match, such as 'ci,ss*'.")] = "*",
    stages: Annotated[
        str, Option(show_default=False, help="Stages to run. By default victims,findings,retraining,examinations.")
    ] = "victims,findings,retraining,examinations",
    capture: Annotated[
        bool, Option("--capture/--eager", help="On a GPU: run training steps as CUDA graphs, or kernel by kernel.")
    ] = True,
    time_budget: Annotated[
        str | None, Option(help="Stop after a time such as 90s, 25m or 3h. The same command continues later.")
    ] = None,
    engine: EngineOptions,
) -> None:
    """Measure attacks and defenses in a grid of experiments.

    Every experiment, a cell of the grid, is an attack of one size with one seed. All defenses are tried on it.

    Example: undoor bench quick --seeds 0,1,2 --time-budget 25m --out results
    """
    require_extra("matplotlib", "figures", "undoor bench")
    from undoor.cli import terminal
    from undoor.experiments.report.readme import write_report
    from undoor.experiments.runner import Bench
    from undoor.experiments.store import Store
    from undoor.experiments.suites import suite as make

    budget = seconds(time_budget)
    chosen_engine = engine.create()
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
            tuple(stages.split(",")),  # type: ignore[arg-type] # Bench checks the names
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
    terminal.print_line(f"tables: {out / 'README.md'}")
