"""The command ``undoor report``."""

from pathlib import Path
from typing import Annotated

import typer

from undoor.cli.options import DATA, ImageColumn, ImageSize, LabelColumn, SkipBroken, Split, read_data


def report(
    findings: Annotated[Path, typer.Argument(help="the folder that undoor scan wrote", metavar="DIR")],
    data: Annotated[str, typer.Option(help=f"what was scanned: {DATA}")],
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Write the report in DIR again, from the findings that lie there; nothing is computed anew.

    Example: undoor report findings --data photos
    """
    from undoor.cli.terminal import out, print_result
    from undoor.findings.reading import require_findings
    from undoor.report import rewrite_report

    require_findings(findings)
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    path = rewrite_report(findings, dataset)
    print_result({"report": path})
    out.print(f"report: {path}", soft_wrap=True, markup=False)
