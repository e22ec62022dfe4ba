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
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.left = threading.Event()
        """Nobody waits for it, nor interrupts it any more."""
        self.value: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        if self.left.is_set():
            return
        self.begun.set()
        try:
            try:
                self.value = self.function()
            except BaseException as e:
                self.error = e
            self.ended.set()
            # An interrupt that comes a moment too late must not hit the next call.
            self.left.wait()
        except SystemExit as e:
            self.error = e
            self.ended.set()
            self.left.wait()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.begun.set()
        self.ended.set()


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
        """The function's value, from this thread, once it is its turn.

        Args:
            function: What to call.
            seconds: How long it may take from when it begins. After that it is interrupted at
                its next step in Python code; a call into a library can't be.

        Raises:
            CallTooLongError: It took too long; the thread is ``lost`` where it can't be interrupted.
            ThreadLostError: It was not begun, and never will be.
        """
        call = _Call(function)
        with self._lock:
            if self.lost:
                raise ThreadLostError
            self._calls.put(call)
        try:
            call.begun.wait()
            if not call.ended.wait(seconds):
                raise CallTooLongError
        except BaseException:  # Ctrl-C, too: nobody waits for it any more
            if call.begun.is_set() and not call.ended.is_set():
                self._interrupt(call)
            raise
        finally:
            call.left.set()
        if call.error is not None:
            raise call.error
        value: T = call.value
        return value

    def end(self) -> None:
        """Ends the thread after the calls that it has been asked for."""
        self._calls.put(None)

    def _interrupt(self, call: _Call) -> None:
        raise_in(self._thread, SystemExit)
        if call.ended.wait(_INTERRUPT_SECONDS):
            raise_in(self._thread, None)  # where the call had ended by itself just before
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
