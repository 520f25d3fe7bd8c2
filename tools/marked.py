"""Read and write the part of a document that a program generates; the part stands between two marks."""

from pathlib import Path

from undoor.storage.atomic import write_text

Marks = tuple[str, str]
"""The line before the generated part and the line after it."""


def marked(document: Path, marks: Marks) -> str:
    """Return the text between the marks in a document."""
    return document.read_text(encoding="utf-8").split(marks[0])[1].split(marks[1])[0].strip()


def write_marked(document: Path, marks: Marks, text: str) -> None:
    """Replace the text between the marks in a document."""
    before, rest = document.read_text(encoding="utf-8").split(marks[0])
    write_text(document, f"{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}")
