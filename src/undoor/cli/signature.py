"""Turns the function of a command into one that typer can read: one parameter per option."""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from undoor.cli.options import OutputOptions


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the fields of its groups of options as single options, and with ``OutputOptions``.

    typer makes an option of every parameter in the signature of a function. A command has one parameter for a group of
    options, whose class is a dataclass such as ``ReadingOptions``. The returned function has the fields of the class as
    parameters instead. When typer calls it, it makes an object of the class from their values and calls the command
    with it. The help shows the options of a group in a panel under the docstring of the class.

    While the command runs, no other run can write to its --out and --sarif.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    signature = inspect.signature(command)
    for parameter in [*signature.parameters.values(), _parameter("output", OutputOptions)]:
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _parameters_of_fields(parameter)
        else:
            parameters.append(_parameter(parameter.name, parameter.annotation, parameter.default))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        from undoor.cli import terminal
        from undoor.storage.lock import claimed

        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        terminal.set_output(**vars(values.pop("output")))
        with claimed(values.get("out")), claimed(values.get("sarif")):
            command(**values)

    # typer reads the signature and the annotations, and prints the docstring with its line breaks.
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    run.__doc__ = "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)
    return run


def _parameters_of_fields(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return one parameter per field of the parameter's class; its default, if any, has the fields' defaults."""
    group: Any = parameter.annotation
    defaults = group if parameter.default is parameter.empty else parameter.default
    parameters = []
    for name, hint in get_type_hints(group, include_extras=True).items():
        option = copy(hint.__metadata__[0])
        option.rich_help_panel = group.__doc__.rstrip(".")
        parameters.append(_parameter(name, Annotated[hint.__origin__, option], getattr(defaults, name)))
    return parameters


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """Return a parameter that is passed by name: such parameters may have defaults in any order."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
