"""Run one function over many items: in this process or on local processes."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, TypeVar

from joblib import Parallel, delayed
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _libraries() -> ThreadpoolController:
    # Found once: searching the process for them takes tens of milliseconds.
    return ThreadpoolController()


def one_thread() -> Any:
    """Return a context in which BLAS and OpenMP libraries compute on one thread."""
    return _libraries().limit(limits=1)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    # Small matrix products on many BLAS threads cost more in thread switches than they gain, and the
    # number of threads would change the last bits of the result: each item gets exactly one.
    with one_thread():
        return function(item)


def map_items(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Sequence[Result]:
    """Apply ``function`` to every item and return the results in the order of the items.

    ``workers`` is the number of local processes; ``None`` takes one per core, 1 stays in this process.
    The results do not depend on it: every item is computed on one BLAS thread wherever it runs.
    """
    items = list(items)
    count = min(workers or os.cpu_count() or 1, len(items))
    if count <= 1:
        with one_thread():
            return [function(item) for item in items]
    call = partial(_call, function)
    return list(Parallel(n_jobs=count)(delayed(call)(item) for item in items))
