"""Turns the texts of options into values; a text that cannot be read raises ``UndoorError``."""

from undoor.errors import UndoorError


def seconds(text: str | None) -> float | None:
    """Return the seconds of a time such as 90s, 25m or 3h."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UndoorError(f"--time-budget is {text!r}; give a time such as 90s, 25m or 3h")
    return value


def dimensions(text: str) -> int | str | None:
    """Return the value of --dimensions as ``MixtureSettings`` takes it; "all" becomes None."""
    if text in ("auto", "few", "all"):
        return None if text == "all" else text
    if not text.isdecimal() or int(text) < 1:
        raise UndoorError(f"--dimensions is {text!r}; give auto, few, all or a whole number above 0")
    return int(text)


def whole_numbers(text: str) -> list[int]:
    """Return the whole numbers in a text, which are separated by commas; each is returned once."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UndoorError(f"--seeds is {text!r}; give whole numbers with commas between them")
    return list(dict.fromkeys(int(part) for part in parts))


def numbers(text: str | None, option: str) -> list[float] | None:
    """Return the numbers in the text of an option, which are separated by commas."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UndoorError(f"{option} is {text!r}; give one number per channel, with commas between them") from None


def position(text: str | None) -> tuple[int, int] | None:
    """Return row and column of a text such as 3,4."""
    if text is None:
        return None
    row, _, column = text.partition(",")
    if not (row.strip().isdigit() and column.strip().isdigit()):
        raise UndoorError(f"--position is {text!r}; give ROW,COLUMN, counted from 0")
    return int(row), int(column)
