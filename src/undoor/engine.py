"""Run one function over many items: on threads of this process, on local processes or on a Ray cluster."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
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
"""How often a task is tried again on a cluster when the node it runs on is lost."""


@dataclass(frozen=True)
class Engine:
    """Where the items of a long job are computed. The results do not depend on it.

    Args:
        kind: "local", on threads of this process, which suits numerical work; "processes", on processes of this
            machine; "ray", on the Ray cluster that RAY_ADDRESS names, by default the one this machine belongs to.
        workers: items that are computed at once; None takes as many as there are cores.
        gpus: of "ray": the share of a GPU that an item gets, such as 0.25; 0 keeps it on a core.

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
"""An engine; or a number of threads, 1 being this one, None one per core."""


def map_items(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: Workers = None,
    on_finished: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Apply ``function`` to every item and return the results in the order of the items.

    See ``as_finished``. ``on_finished`` is called, here, after every item.
    """
    results = {}
    for number, result in as_finished(function, items, workers):
        results[number] = result
        on_finished()
    return [results[number] for number in range(len(results))]


def as_finished(
    function: Callable[[Item], Result], items: Iterable[Item], workers: Workers = None
) -> Iterator[tuple[int, Result]]:
    """Apply ``function`` to every item; yield the number of the item and its result as they are finished.

    Every item is computed on one BLAS thread, and items that it maps itself stay in its process. So the results
    are the same bits wherever they are computed. Off this process, arrays reach ``function`` read-only.

    ``function`` is shipped once, with all that it holds. Items are asked for when there is soon room for them:
    a generator of large ones never has them all in memory.

    Raises:
        UndoorError: if ``function`` does, if there is no cluster, or if a process died on an item again and again.

    """
    engine = workers if isinstance(workers, Engine) else Engine(workers=workers)
    if _within_item.get():
        return _on_joblib(function, items, 1, "threads")
    if engine.kind == "ray":
        return _on_ray(function, items, engine)
    return _on_joblib(function, items, engine.workers, "threads" if engine.kind == "local" else "processes")


_within_item: ContextVar[bool] = ContextVar("_within_item", default=False)


@lru_cache(1)
def _libraries(_: int) -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> Any:
    """Return a context in which BLAS and OpenMP libraries compute on one thread."""
    # Searching the process for them takes tens of milliseconds: only once after modules have come in.
    return _libraries(len(sys.modules)).limit(limits=1)


def _call(function: Callable[[Item], Result], number: int, item: Item) -> tuple[int, Result]:
    # Small matrix products on many BLAS threads cost more in thread switches than they gain, and the
    # number of threads would change the last bits of the result: each item gets exactly one.
    token = _within_item.set(True)
    try:
        with one_thread():
            return number, function(item)
    finally:
        _within_item.reset(token)


def _on_joblib(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    kind: Literal["threads", "processes"],
) -> Iterator[tuple[int, Result]]:
    count = workers or os.cpu_count() or 1
    count = min(count, length_hint(items, count))
    if count <= 1:
        yield from (_call(function, number, item) for number, item in enumerate(items))
        return
    pool = Parallel(n_jobs=count, prefer=kind, return_as="generator_unordered")
    # The limit of a thread is that of the whole process for BLAS: without this one, the first to end would lift it.
    with one_thread() if kind == "threads" else nullcontext():
        left = False

        def wanted() -> Iterator[tuple[int, Item]]:
            for number, item in enumerate(items):
                if left:
                    return
                yield number, item

        finished = pool(delayed(_call)(function, *one) for one in wanted())
        try:
            for one in finished:  # noqa: UP028 - who leaves early would close it, and joblib kill what runs
                yield one
        except TerminatedWorkerError as error:
            raise UndoorError(
                "a local process was killed, often for want of memory; take fewer workers or smaller batches"
            ) from error
        finally:
            left = True
            with suppress(Exception):
                for _ in finished:  # what runs is waited for
                    pass


def _on_ray(function: Callable[[Item], Result], items: Iterable[Item], engine: Engine) -> Iterator[tuple[int, Result]]:
    ray = _connected()
    task = ray.remote(num_cpus=1, num_gpus=engine.gpus, max_retries=RETRIES)(_call)
    shipped = ray.put(function)
    waiting, running = enumerate(items), list[Any]()
    try:
        while True:
            room = max(0, _room(ray, engine) - len(running))
            running += [task.remote(shipped, *one) for one in islice(waiting, room)]
            if not running:
                return
            finished, running = ray.wait(running)
            yield _told(ray, finished[0])
    finally:
        for one in running:
            ray.cancel(one)


def _connected() -> Any:
    """Return the module ``ray``, connected to a cluster."""
    # No report to Ray's makers; and an address where nobody answers is an error in one minute, not in thirteen.
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
    """Return how many items the cluster, as large as it is now, should have: nodes come and go."""
    resources = ray.cluster_resources()
    if engine.gpus and not resources.get("GPU"):
        raise UndoorError("the Ray cluster has no GPU; add a node that has one, or leave --gpus out")
    slots = resources.get("CPU", 0.0)
    if engine.gpus:
        slots = min(slots, resources["GPU"] / engine.gpus)
    # Twice as many as can run: none waits for its next item.
    return engine.workers or 2 * max(1, int(slots))


def _told(ray: Any, finished: Any) -> Any:
    """Return what a task returned or raise what it raised."""
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UndoorError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise UndoorError(
            f"an item was tried {RETRIES + 1} times on the cluster: {first_line(error)}; "
            "look at that node, often it wants memory"
        ) from error
