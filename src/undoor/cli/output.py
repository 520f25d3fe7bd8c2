"""What a command may print: options that all of them have."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors and notes only")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, and nothing else, on standard output")]


def with_output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also has ``--quiet`` and ``--json`` and obeys them, and alone writes where it does."""

    @functools.wraps(command)
    def run(*, quiet: bool, as_json: bool, **options: Any) -> None:
        from undoor.cli import terminal
        from undoor.storage.lock import claimed

        terminal.use(quiet=quiet, as_json=as_json)
        with claimed(options.get("out")), claimed(options.get("sarif")):
            command(**options)

    added = {"quiet": Quiet, "as_json": Json}
    kind = inspect.Parameter.KEYWORD_ONLY
    given = inspect.signature(command)
    options = [inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in added.items()]
    run.__signature__ = given.replace(parameters=[*given.parameters.values(), *options])  # type: ignore[attr-defined]
    run.__annotations__ = get_type_hints(command, include_extras=True) | added
    return run
