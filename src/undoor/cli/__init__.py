"""The command line of undoor. Every command has a module of its own, which reads its options and calls the library.

Nothing heavy is imported until a command runs, so that ``undoor --help`` answers at once.
"""

import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from undoor._version import __version__
from undoor.cli.bench import bench
from undoor.cli.demo import demo
from undoor.cli.guard import guard
from undoor.cli.inspect import inspect
from undoor.cli.poison import poison
from undoor.cli.prune import prune
from undoor.cli.report import report
from undoor.cli.scan import clean, scan
from undoor.cli.signature import with_options
from undoor.cli.train import train
from undoor.errors import UndoorError, UndoorNotice, one_line

app = typer.Typer(
    name="undoor",
    help="Find and remove backdoor poisoning from the training set of an image classifier.",
    epilog="Example: undoor scan photos --out findings",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"undoor {__version__}")
        raise typer.Exit


@app.callback()
def _undoor(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (demo, poison, train, scan, clean, report, inspect, prune, bench):
    app.command()(with_options(command))
app.add_typer(guard)


def main() -> None:
    """Run the command line.

    Notices are printed as one line each. An error is one line, and the exit code is then 2; only a bug in undoor also
    prints a traceback.
    """
    show_warning = warnings.showwarning

    def show(message: Any, category: Any, *rest: Any) -> None:
        if issubclass(category, UndoorNotice):
            print(f"note: {message}", file=sys.stderr)
        else:
            show_warning(message, category, *rest)

    warnings.showwarning = show  # type: ignore[assignment] # the parameters have other names
    try:
        app(prog_name="undoor")
    except UndoorError as error:
        _fail(str(error))
    except OSError as error:
        path = f": {error.filename}" if error.filename else ""
        _fail(one_line(f"{error.strerror or error}{path}") + "; check the path and its permissions")
    except Exception as error:
        if _is_out_of_memory(error):
            _fail("there is not enough memory for this; give less data, or a smaller --image-size")
        traceback.print_exc()
        _fail("this is a bug in undoor; please report it with the lines above")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory was exhausted. PyTorch raises a plain RuntimeError for this, except on a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error))
    )
