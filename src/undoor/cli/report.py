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
    """Write the report in DIR again, from the findings that lie there; nothing is computed anew."""
    from undoor.findings import require_findings
    from undoor.scanning import rewrite_report
    from undoor.terminal import out

    require_findings(findings)
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    out.print(f"report: {rewrite_report(findings, dataset)}", soft_wrap=True, markup=False)
