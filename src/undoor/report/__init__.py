"""Results as one HTML file that opens offline."""

from undoor.report.findings import SHEET, render_report

__all__ = ["SHEET", "render_report"]
