"""The command ``undoor demo``."""

from pathlib import Path
from typing import Annotated

from typer import Option

from undoor.cli.options import Overwrite, Seed


def demo(
    *,
    out: Annotated[Path, Option(help="Write the findings and demo.json to this folder.")] = Path("undoor-demo"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Plant a backdoor in built-in images, find it, remove it and retrain.

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
    attack, page = result.attack, out / "findings" / "report.html"
    terminal.print_line(
        f"planted: {attack.count} images of class {', '.join(attack.sources)}, {attack.trigger}, "
        f"labelled {attack.target}"
    )
    terminal.print_findings(result.findings)
    terminal.print_before_after(result.before, result.after)
    terminal.print_result({**result.summary(), "verdict": result.findings.verdict, "report": page})
    terminal.print_line(f"report: {page}\nnext: undoor scan YOUR_FOLDER --out findings")
