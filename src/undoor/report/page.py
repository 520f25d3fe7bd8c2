"""One self-contained HTML file from a template: style, script and data are inside, and nothing is fetched."""

import base64
import hashlib
import json
import zlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, data: Any = None, **content: Any) -> str:
    """Return the page that ``template`` makes of ``content``, with every text escaped.

    The page's content policy names its one script and its one style sheet by their hashes, and allows images within the
    file. A browser refuses everything else.

    Args:
        template: the file name of a template.
        data: plain values for the page's script.
        content: the variables of the template.

    """
    environment = Environment(
        loader=PackageLoader("undoor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "decimal": decimal, "percent": percent}
    style, script = (files("undoor.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        # Both are files of this package and hold no text of a user.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=policy,
        data=packed(data),
        **content,
    )


def packed(data: Any) -> str:
    """Return plain values as deflated JSON in base64, so that no text of a user can end the element that holds it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def number(value: int) -> str:
    """Return a count with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def decimal(value: float, places: int = 3) -> str:
    """Return a number with this many decimal places and a proper minus sign."""
    return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"
