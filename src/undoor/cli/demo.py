"""The command ``undoor demo``."""

from pathlib import Path
from typing import Annotated

import typer

from undoor.cli.options import Overwrite, Seed


def demo(
    out: Annotated[Path, typer.Option(help="the folder for findings/ and demo.json")] = Path("undoor-demo"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Plant a backdoor in embedded data, find it, remove it, retrain, and show before and after.

    Example: undoor demo --out undoor-demo
    """
    from undoor.cli import terminal
    from undoor.experiments.demo import demo as run

    with terminal.stages("read") as bar:
        result = run(
            out,
            seed,
            overwrite=overwrite,
            on_step=lambda stage, step: bar.training(stage)(step),
            on_count=lambda stage, done, total: bar.counting(stage)(done, total),
        )
    attack = result.attack
    terminal.out.print(
        f"planted: {attack.count} images of class {', '.join(attack.sources)}, {attack.trigger}, "
        f"labelled {attack.target}"
    )
    terminal.print_findings(result.findings)
    terminal.print_before_after(result.before, result.after)
    terminal.print_result(
        {**result.summary(), "verdict": result.findings.verdict, "report": out / "findings" / "report.html"}
    )
    terminal.out.print(f"report: {out / 'findings' / 'report.html'}", soft_wrap=True, markup=False)
    terminal.out.print("next: undoor scan YOUR_FOLDER --out findings")
