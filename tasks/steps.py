"""What makes a function a step: a Prefect task inside a flow run, a plain call anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from prefect import task
from prefect.context import FlowRunContext

from models.errors import Unavailable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


async def _may_pass(_task: object, _run: object, state: Any) -> bool:
    """Retry what may pass by itself; bad input stays bad."""
    return isinstance(await state.aresult(raise_on_failure=False), Unavailable)


def step(*, retries: int = 2) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a step. In a flow run it is a Prefect task with retries; called from a script it is the function itself.

    Prefect starts a server of its own for a task without one, which takes 20 seconds: too long for `dipnet issue list`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        as_task = task(retries=retries, retry_delay_seconds=10, retry_condition_fn=_may_pass)(function)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            return as_task(*args, **kwargs) if FlowRunContext.get() else function(*args, **kwargs)

        return run

    return decorate


class Progress(Protocol):
    """Something that shows how far long work has come."""

    def start(self, what: str, total: int) -> int:
        """Begin a piece of work of so many units; return its number."""
        ...

    def advance(self, number: int, by: int) -> None:
        """So many units more are done."""
        ...

    def tell(self, number: int, text: str) -> None:
        """Show a few words beside it."""
        ...


_shown: ContextVar[Progress | None] = ContextVar("dipnet_progress", default=None)


@contextmanager
def showing(progress: Progress) -> Iterator[None]:
    """Show the progress of steps inside the block."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


class Counter:
    """A piece of work that somebody may be looking at."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress = progress
        self._number = progress.start(what, total) if progress else 0

    def __call__(self, by: int) -> None:
        """So many units more are done."""
        if self._progress:
            self._progress.advance(self._number, by)

    def tell(self, text: str) -> None:
        """A few words on how it goes."""
        if self._progress:
            self._progress.tell(self._number, text)


def counting(total: int, what: str) -> Counter:
    """A counter of so many units, shown where somebody looks. One that goes on under the same name is taken up again."""
    return Counter(_shown.get(), what, total)


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with progress shown where somebody looks."""
    progress = _shown.get()
    if progress is None:
        yield from items
        return
    number = progress.start(what, len(items))
    for item in items:
        yield item
        progress.advance(number, 1)
