"""An interrupt that comes while an event is written is not lost."""

from __future__ import annotations

import os
import signal
import threading
import weakref

import pytest

from sheaf_dagster.definitions.interrupts import interrupts_wait


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """Also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Thing:
    pass


def _interrupted_where_python_drops_it() -> None:
    """As SQLAlchemy's bookkeeping is: in the callback of a weak reference."""
    thing = _Thing()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    assert reference() is None


def test_an_interrupt_that_python_would_drop_is_raised_after_the_block():
    went_on = False

    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        _interrupted_where_python_drops_it()
        went_on = True

    assert went_on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_takes_the_place_of_the_blocks_own_error():
    with pytest.raises(KeyboardInterrupt) as caught, interrupts_wait():
        _interrupted_where_python_drops_it()
        raise OSError("the disk is full")

    assert isinstance(caught.value.__context__, OSError)


def test_a_function_is_protected_as_a_block_is_each_time_it_is_called():
    @interrupts_wait()
    def write(interrupted: bool) -> str:
        if interrupted:
            _interrupted_where_python_drops_it()
        return "written"

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(True)
    assert write(False) == "written"


def test_a_thread_leaves_the_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def block() -> None:
        with interrupts_wait():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()

    assert seen == [before]
