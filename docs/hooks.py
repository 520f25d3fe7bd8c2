"""Hooks of mkdocs. Links from docs/ to other files of the repository do not work on the site and are replaced."""

import re
from typing import Any

OUTSIDE = r"(\.\./[^)\s]+)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the name of the file instead of each link that leaves docs/."""
    references = dict(re.findall(rf"^\[([^\]]+)\]: {OUTSIDE}$", markdown, re.MULTILINE))
    markdown = re.sub(rf"^\[[^\]]+\]: {OUTSIDE}\n", "", markdown, flags=re.MULTILINE)
    markdown = re.sub(rf"\[([^\]]+)\]\({OUTSIDE}\)", lambda m: _named(m[1], m[2]), markdown)
    return re.sub(
        r"\[([^\]]+)\]\[([^\]]+)\]",
        lambda m: _named(m[1], references[m[2]]) if m[2] in references else m[0],
        markdown,
    )


def _named(text: str, target: str) -> str:
    path = target.removeprefix("../").split("#")[0]
    return text if path in text else f"{text} (`{path}`)"
