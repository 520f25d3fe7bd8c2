"""Results as one HTML file that opens offline. Each ``write_…`` writes a result together with its page."""

from undoor.report.findings import render_findings, rewrite_report, write_findings
from undoor.report.guard import render_checked, write_checked
from undoor.report.inspection import render_inspection, write_inspection
from undoor.report.pruned import render_pruned, write_pruned
from undoor.report.result import Axis, render_result

__all__ = [
    "Axis", "render_checked", "render_findings", "render_inspection", "render_pruned", "render_result",
    "rewrite_report", "write_checked", "write_findings", "write_inspection", "write_pruned",
]  # fmt: skip
