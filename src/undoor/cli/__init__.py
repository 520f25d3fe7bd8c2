"""The command line: parse, call, print.

Nothing heavy is imported at the top: ``undoor --help`` answers at once. One file a command.
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
from undoor.cli.output import with_output_options
from undoor.cli.poison import poison
from undoor.cli.prune import prune
from undoor.cli.report import report
from undoor.cli.scan import clean, scan
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


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"undoor {__version__}")
        raise typer.Exit


@app.callback()
def _undoor(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


for command in (demo, poison, train, scan, clean, report, inspect, prune, bench):
    app.command()(with_output_options(command))
app.add_typer(guard)


def main() -> None:
    """Run the command line; an error the user can mend is one line and exit code 2."""
    former = warnings.showwarning

    def show(message: Any, category: Any, *rest: Any) -> None:
        if issubclass(category, UndoorNotice):
            print(f"note: {message}", file=sys.stderr)
        else:
            former(message, category, *rest)

    warnings.showwarning = show  # type: ignore[assignment] # only its first arguments matter
    try:
        app(prog_name="undoor")
    except UndoorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        told = one_line(f"{error.strerror or error}{where}")
        print(f"error: {told}; check the path and its permissions", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if _lacks_memory(error):
            print("error: the memory is not enough for this; give less data, or smaller --image-size", file=sys.stderr)
        else:
            traceback.print_exc()
            print("error: this is a fault of undoor; please report it with the lines above", file=sys.stderr)
        sys.exit(2)


def _lacks_memory(error: Exception) -> bool:
    """Whether there is no memory left, which PyTorch tells by a RuntimeError: of a kind of its own on a GPU alone."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error))
    )
