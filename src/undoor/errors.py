"""What undoor says when something is not as it should be."""

from importlib.util import find_spec

LINE = 2000
"""Characters of what is told: names in it can come from whoever made the data."""


def one_line(message: object) -> str:
    """Return a message without line breaks and what else disturbs a terminal; the middle of a long one is left out."""
    text = str(message)
    shown = text if len(text) <= LINE else f"{text[: LINE // 2]} … {text[-LINE // 2 :]}"
    return "".join(c if c.isprintable() else " " for c in shown)


class UndoorError(Exception):
    """A problem the user can mend, told in one line: what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """Return the line, whatever names are in it."""
        return one_line(super().__str__())


class UndoorNotice(UserWarning):
    """Something the user should know although the work goes on, such as images that were resized."""

    def __str__(self) -> str:
        """Return the line, whatever names are in it."""
        return one_line(super().__str__())


def first_line(error: BaseException) -> str:
    """Return what an exception of another library says, cut to one short line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def require_extra(package: str, extra: str, purpose: str) -> None:
    """Raise an error if an optional dependency is not installed.

    Args:
        package: the name with which it is imported.
        extra: the extra of undoor that installs it.
        purpose: what needs it, as the beginning of the message.

    Raises:
        UndoorError: if the package cannot be found.

    """
    if find_spec(package) is None:
        raise UndoorError(f"{purpose} needs {package}; install it with: pip install 'undoor[{extra}]'")
