"""The parts of pages that are written by programs stand between two marks."""

from pathlib import Path

from undoor.storage.atomic import write_text

Marks = tuple[str, str]
"""What stands before the part and what behind it, each on a line of its own."""


def marked(page: Path, marks: Marks) -> str:
    """Return what stands between the marks on a page."""
    return page.read_text(encoding="utf-8").split(marks[0])[1].split(marks[1])[0].strip()


def write_marked(page: Path, marks: Marks, text: str) -> None:
    """Write ``text`` between the marks on a page."""
    before, rest = page.read_text(encoding="utf-8").split(marks[0])
    write_text(page, f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")
