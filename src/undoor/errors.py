"""What undoor says when something is not as it should be."""

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
