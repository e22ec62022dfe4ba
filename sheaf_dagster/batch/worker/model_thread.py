"""A thread of a model's own: it loads it, and makes every call of it, one after the other."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["CallTooLongError", "ModelThread", "ThreadLostError", "raise_in"]

T = TypeVar("T")

_INTERRUPT_SECONDS = 0.3


class CallTooLongError(Exception):
    """A call took longer than it was allowed to."""


class ThreadLostError(Exception):
    """The thread is stuck in another call, and will never come to this one."""


class _Call:
    """A call on its way. Bare locks in place of events: they are made for each batch."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.value: Any = None
        self.error: BaseException | None = None
        self.unwanted = False
        """Nobody waits for it any more."""
        self.begun = _held_lock()
        self.ended = _held_lock()
        self._lock = threading.Lock()
        self.may_be_interrupted = False
        """Whether it is being made."""

    def make(self) -> None:
        if not self.unwanted:
            self.may_be_interrupted = True
            self.begun.release()
            try:
                try:
                    self.value = self.function()
                except BaseException as e:
                    self.error = e
                with self._lock:  # an interrupt comes before this or not at all
                    self.may_be_interrupted = False
            except SystemExit as e:
                self.error = e
                self.may_be_interrupted = False
        self.ended.release()

    def interrupt(self, thread: threading.Thread) -> None:
        with self._lock:
            if self.may_be_interrupted:
                raise_in(thread, SystemExit)

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.begun.release()
        self.ended.release()


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class ModelThread:
    """Makes the calls of whichever threads ask for them.

    Libraries keep state by thread, such as torch's grad mode: what ``load()`` has set must hold
    in every later call.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.lost = False
        """Whether it is stuck, and takes no more calls."""
        self._thread = threading.Thread(target=self._serve, daemon=True, name="sheaf-model")
        self._thread.start()

    def call(self, function: Callable[[], T], seconds: float | None = None) -> T:
        """The function's value, from this thread, once it is its turn; at once where it calls itself.

        Args:
            function: What to call.
            seconds: How long it may take from when it begins. After that it is interrupted at
                its next step in Python code; a call into a library can't be.

        Raises:
            CallTooLongError: It took too long; the thread is ``lost`` where it can't be interrupted.
            ThreadLostError: It was not begun, and never will be.
        """
        if threading.current_thread() is self._thread:
            return function()
        call = _Call(function)
        with self._lock:
            if self.lost:
                raise ThreadLostError
            self._calls.put(call)
        try:
            if seconds is None:
                call.ended.acquire()
            else:
                call.begun.acquire()
                if not call.ended.acquire(timeout=seconds):
                    raise CallTooLongError
        except BaseException:  # Ctrl-C, too
            self._give_up(call)
            raise
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value

    def end(self) -> None:
        """Ends the thread after the calls that it has been asked for."""
        self._calls.put(None)

    def _give_up(self, call: _Call) -> None:
        call.unwanted = True
        call.interrupt(self._thread)
        if not call.may_be_interrupted or call.ended.acquire(timeout=_INTERRUPT_SECONDS):
            return
        with self._lock:
            self.lost = True
        while True:
            try:
                waiting = self._calls.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting.fail(ThreadLostError())
        self._calls.put(None)  # where it comes back some day

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()
            del call  # and with it what it holds


def raise_in(thread: threading.Thread, error: type[BaseException] | None) -> None:
    """Raises an error at the thread's next step in Python code; None: takes one back."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), None if error is None else ctypes.py_object(error)
    )
