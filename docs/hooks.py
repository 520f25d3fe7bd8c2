"""What makes the site of the pages: a link that leaves docs/ leads to a file of the repository, which is not there."""

import re
from typing import Any

OUTSIDE = r"(\.\./[^)\s]+)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the names of such files beside what linked to them."""
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
