"""An event loop in a thread of its own, for backends that hold rows in flight."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["BackgroundLoop", "gathered"]

T = TypeVar("T")
R = TypeVar("R")


class BackgroundLoop:
    """Runs coroutines of one backend, all on one loop, from when it is made until ``close``.

    Clients of engines and services belong to the loop on which they were first used, so a
    backend keeps one loop for its whole life. It isn't the caller's, who may be in a loop already
    (a notebook is).
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, daemon=True, name="sheaf-loop")
        self._thread.start()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Has a coroutine run; nobody waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """A coroutine's value, or its error; the caller waits.

        Raises:
            RuntimeError: It was called on the loop itself, which would wait for ever.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("run_async() was called from a coroutine; await it there instead")
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: nobody waits for it any more
            future.cancel()
            raise

    def close(self) -> None:
        """Cancels what still runs, and ends the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def gathered(call: Callable[[R], Awaitable[T]], rows: Iterable[R], most: int) -> list[T]:
    """What ``call`` answers to each row, in their order, with at most ``most`` under way.

    All are waited for. Of several that fail the first row's error is raised, whichever failed
    first.
    """
    room = asyncio.Semaphore(most)

    async def one(row: R) -> T:
        async with room:
            return await call(row)

    answers = await asyncio.gather(*map(one, rows), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers  # type: ignore[return-value]
