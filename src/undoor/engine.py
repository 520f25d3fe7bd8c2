"""Run one function over many items: in this process or on local processes."""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    # Small matrix products on many BLAS threads cost more in thread switches than they gain, and the
    # number of threads would change the last bits of the result: each item gets exactly one.
    with threadpool_limits(1):
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
        with threadpool_limits(1):  # once for all: finding the libraries takes milliseconds
            return [function(item) for item in items]
    call = partial(_call, function)
    return list(Parallel(n_jobs=count)(delayed(call)(item) for item in items))
