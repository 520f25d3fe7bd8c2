"""The error and the warning of undoor, whose texts are one line that is safe to print on a terminal."""

from importlib.util import find_spec

MESSAGE_CHARACTERS = 2000
"""Longest message. Longer ones are shortened, because names in them can come from whoever made the data."""


def one_line(message: object) -> str:
    """Return a message in one line that cannot disturb a terminal; a long message loses its middle."""
    text = str(message)
    if len(text) > MESSAGE_CHARACTERS:
        text = f"{text[: MESSAGE_CHARACTERS // 2]} … {text[-MESSAGE_CHARACTERS // 2 :]}"
    return "".join(c if c.isprintable() else " " for c in text)


class _OneLine:
    def __str__(self) -> str:
        return one_line(super().__str__())


class UndoorError(_OneLine, Exception):
    """A problem that the user can solve. Its text is one line: what is wrong, where, and what to do.

    >>> import undoor
    >>> try:
    ...     undoor.read("missing.npz")
    ... except undoor.UndoorError as error:
    ...     print(error)
    missing.npz does not exist; give a folder, a file, 'digits' or 'hub:NAME' for a data set of the hub

    """


class UndoorNotice(_OneLine, UserWarning):
    """A warning about something that does not stop the work, such as images that were resized.

    >>> import warnings, undoor
    >>> warnings.simplefilter("ignore", undoor.UndoorNotice)  # hide all notices

    """


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, in at most 200 characters."""
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
