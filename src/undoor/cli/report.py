"""The command ``undoor report``."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from undoor.cli.options import FORMATS, ReadingOptions


def report(
    findings: Annotated[Path, Argument(help="The folder that undoor scan wrote.", metavar="DIR")],
    *,
    data: Annotated[str, Option(help=f"The images that were scanned: {FORMATS}.")],
    reading: ReadingOptions,
) -> None:
    """Write the report of a scan again, from the findings in DIR.

    Example: undoor report findings --data photos
    """
    from undoor.cli import terminal
    from undoor.findings.reading import require_findings
    from undoor.report.findings import rewrite_report

    require_findings(findings)
    path = rewrite_report(findings, reading.read(data))
    terminal.print_result({"report": path})
    terminal.print_line(f"report: {path}")
