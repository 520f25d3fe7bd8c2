"""Apply one function to many items: on threads of this process, on local processes or on a Ray cluster."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from operator import length_hint
from typing import Any, Literal, TypeVar, get_args

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import ThreadpoolController

from undoor.errors import UndoorError, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")

Kind = Literal["local", "processes", "ray"]

RETRIES = 5
"""How often a cluster tries an item again when the node that computes it is lost."""


@dataclass(frozen=True)
class Engine:
    """Where the items of a long job are computed. The results do not depend on it.

    Args:
        kind: "local" for threads of this process, which suits numerical work; "processes" for processes of this
            machine; "ray" for the Ray cluster at RAY_ADDRESS, by default the cluster to which this machine belongs.
        workers: how many items are computed at once; None takes as many as there are cores.
        gpus: for "ray", the share of a GPU that every item gets, such as 0.25; 0 computes on a core.

    Raises:
        UndoorError: there is no such kind, or a number is out of range.

    """

    kind: Kind = "local"
    workers: int | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UndoorError(f"there is no engine {self.kind!r}; choose {', '.join(get_args(Kind))}")
        if self.workers is not None and self.workers < 1:
            raise UndoorError(f"the number of workers is {self.workers}; give 1 or more")
        if self.gpus < 0 or (self.gpus > 0 and self.kind != "ray"):
            raise UndoorError(f"{self.gpus} GPUs an item cannot be had on {self.kind}; give 0 or more, on ray")


Workers = Engine | int | None
"""An engine, or a number of threads. 1 computes on the calling thread; None takes one thread per core."""


def map_items(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: Workers = None,
    on_finished: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Apply ``function`` to every item, as ``as_finished`` does, and return the results in the order of the items.

    ``on_finished`` is called on this thread after every item.
    """
    results = {}
    for index, result in as_finished(function, items, workers):
        results[index] = result
        on_finished()
    return [results[index] for index in range(len(results))]


def as_finished(
    function: Callable[[Item], Result], items: Iterable[Item], workers: Workers = None
) -> Iterator[tuple[int, Result]]:
    """Apply ``function`` to every item, and yield the index and the result of each item as soon as it is finished.

    Every item is computed with one BLAS thread, and the items of a nested call stay in their process. The results are
    therefore the same bits wherever they are computed. Threads share the context variables of the caller. Other
    processes do not, and there the arrays that ``function`` receives are read-only.

    ``function`` is sent to every process once, with all that it holds. An item is taken from ``items`` only shortly
    before it is computed, so that a generator of large items never has all of them in memory.

    Raises:
        UndoorError: there is no cluster, or a process died on an item repeatedly. Errors of ``function`` are passed on.

    """
    engine = workers if isinstance(workers, Engine) else Engine(workers=workers)
    if _within_item.get():
        return _on_joblib(function, items, 1, threads=True)
    if engine.kind == "ray":
        return _on_ray(function, items, engine)
    return _on_joblib(function, items, engine.workers, threads=engine.kind == "local")


_within_item: ContextVar[bool] = ContextVar("_within_item", default=False)


@lru_cache(1)
def _libraries(_: int) -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> Any:
    """Return a context in which BLAS and OpenMP libraries compute on one thread."""
    # It takes tens of milliseconds to find the libraries. They are searched again only after further imports.
    return _libraries(len(sys.modules)).limit(limits=1)


def _call(function: Callable[[Item], Result], index: int, item: Item) -> tuple[int, Result]:
    # Small matrix products lose more by switching between BLAS threads than they gain, and the number of threads would
    # change the last bits of the result.
    token = _within_item.set(True)
    try:
        with one_thread():
            return index, function(item)
    finally:
        _within_item.reset(token)


def _on_joblib(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None, *, threads: bool
) -> Iterator[tuple[int, Result]]:
    count = workers or os.cpu_count() or 1
    count = min(count, length_hint(items, count))
    if count <= 1:
        yield from (_call(function, index, item) for index, item in enumerate(items))
        return
    context = copy_context()
    pool = Parallel(count, require="sharedmem" if threads else None, return_as="generator_unordered")
    # BLAS has one limit for the whole process: without this outer limit, the first item to end would lift it.
    with one_thread() if threads else nullcontext():
        stopped = False

        def calls() -> Iterator[Any]:
            for index, item in enumerate(items):
                if stopped:
                    return
                call = partial(_call, function, index, item)
                yield delayed(context.copy().run)(call) if threads else delayed(call)()

        finished = pool(calls())
        try:
            # ``yield from`` would close the generator when the caller stops early, and joblib would kill running items.
            for result in finished:  # noqa: UP028
                yield result
        except TerminatedWorkerError as error:
            raise UndoorError(
                "a local process was killed, often for want of memory; take fewer workers or smaller batches"
            ) from error
        finally:
            stopped = True
            with suppress(Exception):
                for _ in finished:  # wait for the running items
                    pass


def _on_ray(function: Callable[[Item], Result], items: Iterable[Item], engine: Engine) -> Iterator[tuple[int, Result]]:
    ray = _connected_ray()
    task = ray.remote(num_cpus=1, num_gpus=engine.gpus, max_retries=RETRIES)(_call)
    shipped = ray.put(function)
    waiting, running = enumerate(items), list[Any]()
    try:
        while True:
            room = max(0, _room(ray, engine) - len(running))
            running += [task.remote(shipped, index, item) for index, item in islice(waiting, room)]
            if not running:
                return
            finished, running = ray.wait(running)
            yield _result_of(ray, finished[0])
    finally:
        for reference in running:
            ray.cancel(reference)


def _connected_ray() -> Any:
    """Return the module ``ray``, connected to a cluster."""
    # Nothing is reported to Ray's makers. An address where nobody answers is an error after one minute, not thirteen.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
    except ModuleNotFoundError:
        raise UndoorError("the engine ray needs Ray; install it with: pip install 'undoor[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UndoorError(
                f"no Ray cluster: {first_line(error)}; start one with `ray start --head`, or set RAY_ADDRESS"
            ) from error
    return ray


def _room(ray: Any, engine: Engine) -> int:
    """Return how many items the cluster should hold now. Nodes come and go, so this is computed anew for every item."""
    resources = ray.cluster_resources()
    if engine.gpus and not resources.get("GPU"):
        raise UndoorError("the Ray cluster has no GPU; add a node that has one, or leave --gpus out")
    slots = resources.get("CPU", 0.0)
    if engine.gpus:
        slots = min(slots, resources["GPU"] / engine.gpus)
    # Twice as many items as can run, so that no slot waits for its next item.
    return engine.workers or 2 * max(1, int(slots))


def _result_of(ray: Any, reference: Any) -> Any:
    """Return what a task returned, or raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UndoorError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UndoorError(
            f"an item was tried {RETRIES + 1} times on the cluster: {first_line(error)}; "
            "look at that node, often it wants memory"
        ) from error
