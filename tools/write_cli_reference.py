"""Writes docs/cli.md, the reference of the command line, from the commands: python -m tools.write_cli_reference."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer

from undoor import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

INTRODUCTION = """# Command line

All commands with their arguments and options. `undoor COMMAND --help` shows the same. `python -m undoor` does what
`undoor` does.

A command exits with 0 if it has found nothing, with 1 if it has flagged something, and with 2 after an error, which it
prints in one line. With `--json` it prints its result for programs, and with `--quiet` nothing but errors and notes.

This page is written by `python -m tools.write_cli_reference`.
"""

PLACEHOLDERS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""Stands for the value of an option that has no metavar of its own, by its type."""


def page() -> str:
    """Return the content of the page."""
    sections = [_section(name, command) for name, command in _commands("undoor", typer.main.get_command(cli.app))]
    return "\n".join([INTRODUCTION, *sections])


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that is not a group, with its full name."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, child in command.commands.items():
        yield from _commands(f"{name} {word}", child)


def _section(name: str, command: Any) -> str:
    description, example = command.help.split("Example: ")
    rows = [_row(parameter, command.callback.__annotations__[parameter.name]) for parameter in command.params]
    table = ["| argument or option | meaning | default |", "|---|---|---|", *rows]
    return "\n".join([f"## {name}", "", description.strip(), "", f"    {example.strip()}", "", *table, ""])


def _row(parameter: Any, annotation: Any) -> str:
    hidden = parameter.default is None or parameter.default is False or not parameter.show_default
    default = "" if hidden else f"`{parameter.default}`"
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar}`"
    else:
        value = parameter.metavar or next((PLACEHOLDERS[t] for t in _types(annotation) if t in PLACEHOLDERS), "")
        names = ", ".join(f"`{f'{name} {value}'.strip()}`" for name in parameter.opts + parameter.secondary_opts)
        default = f"`{parameter.opts[0]}`" if parameter.default is True else default
    meaning = re.sub(r"([|*<\[])", r"\\\1", parameter.help)
    return f"| {names} | {meaning} | {'required' if parameter.required else default} |"


def _types(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and the types within it."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
