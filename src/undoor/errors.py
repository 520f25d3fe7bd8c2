"""What undoor says when something is not as it should be."""


class UndoorError(Exception):
    """A problem the user can mend, told in one line: what is wrong, where, and what to do."""


class UndoorNotice(UserWarning):
    """Something the user should know although the work goes on, such as images that were resized."""


def first_line(error: BaseException) -> str:
    """Return what an exception of another library says, cut to one short line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
