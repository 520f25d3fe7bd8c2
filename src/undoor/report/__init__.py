"""Results as one HTML file that opens offline."""

from undoor.report.findings import SHEET, render_report
from undoor.report.result import Axis, render_result

__all__ = ["SHEET", "Axis", "render_report", "render_result"]
