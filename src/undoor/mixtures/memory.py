"""A memory of clusterings, so that variants of a defense that share their mixtures fit them once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

memory: ContextVar[dict[Any, Any] | None] = ContextVar("memory", default=None)
"""The clusterings that were found in this context, by the arguments that led to them; None remembers nothing."""


@contextmanager
def remembered_clusterings() -> Iterator[None]:
    """Within this context, ``cluster`` and ``cluster_classes`` find every clustering only once.

    They return what they found before for features with the same values and the same settings, seed and device. The
    memory serves this thread and the threads to which ``undoor.engine`` gives items. It ends with the context.
    """
    token = memory.set({})
    try:
        yield
    finally:
        memory.reset(token)
