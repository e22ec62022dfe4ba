"""A contract and models small enough to see through."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import threading
import time
from copy import copy
from typing import Literal

from sheaf_dagster import (
    BaseRequest,
    BaseResponse,
    ModelBackend,
    ModelSpec,
    ResourceConfig,
    register_contract,
)
from sheaf_dagster.backends import weights_digest
from sheaf_dagster.batch.worker import pipeline
from sheaf_dagster.batch.worker.beside.choice import Beside
from tests.waiting import wait_until


class NumberRequest(BaseRequest):
    model_type: Literal["number"] = "number"
    value: float
    group: int = 0
    note: str | None = None


class NumberResponse(BaseResponse):
    model_type: Literal["number"] = "number"
    value: float
    batch: int = 0
    note: str | None = None


register_contract("number", NumberRequest, NumberResponse)


class Doubler(ModelBackend):
    """Doubles; told by its arguments and by special values how to misbehave."""

    model_type = "number"

    def __init__(
        self,
        load_log: str | None = None,
        batch_seconds: float = 0.0,
        jitter: bool = False,
        drop_last: bool = False,
        reverse: bool = False,
        fail_on: float | None = None,
        memory_rows: int | None = None,
        exit_on: float | None = None,
        exit_once: str | None = None,
        call_log: str | None = None,
        fail_load: bool = False,
        fail_every: int | None = None,
        segfault_on: float | None = None,
        hang_on: list[float] | None = None,
        hang_how: str = "sleep",
        slow_while: str | None = None,
        slow_from: float = 0.0,
        slow_seconds: float = 600.0,
    ) -> None:
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})

    def load(self) -> None:
        if self.fail_load:
            raise OSError("weights are gone")
        _append(self.load_log, str(os.getpid()))

    def batch_predict(self, requests):
        _append(self.call_log, str(len(requests)))
        if self.memory_rows is not None and len(requests) > self.memory_rows:
            raise RuntimeError("CUDA out of memory (pretended)")
        values = [r.value for r in requests]
        if self.segfault_on is not None and self.segfault_on in values:
            ctypes.string_at(0)
        if self.hang_on is not None and any(v in self.hang_on for v in values):
            _hang(self.hang_how)
        if self.fail_every is not None and any(v % self.fail_every == 0 for v in values):
            raise ValueError("cannot double this")
        if self.fail_on is not None and self.fail_on in values:
            raise ValueError(f"cannot double {self.fail_on:g}")
        if self.exit_on is not None and self.exit_on in values:
            if self.exit_once is None:
                os._exit(1)
            if not os.path.exists(self.exit_once):
                open(self.exit_once, "w").close()
                os._exit(1)
        if self.jitter and requests:
            time.sleep((requests[0].request_id.int % 7) * 0.004)
        time.sleep(self.batch_seconds)
        if self.slow_while is not None and values and max(values) >= self.slow_from:
            _wait_while(self.slow_while, self.slow_seconds)
        answers = [
            NumberResponse(
                request_id=r.request_id,
                model_name=r.model_name,
                value=r.value * 2,
                batch=len(requests),
                note=r.note,
            )
            for r in requests
        ]
        if self.reverse:
            answers.reverse()
        return answers[:-1] if self.drop_last else answers


class Deviant(Doubler):
    """Falls back on negative values and truncates above a hundred; fails once where told."""

    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for request, answer in zip(requests, answers, strict=True):
            if request.value < 0:
                answer.deviates("fell_back")
            if abs(request.value) > 100:
                answer.deviates("truncated")
        return answers


class InOneCall(Doubler):
    """Doubles; says nothing of the batch, so that answers compare over all shapes."""

    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for answer in answers:
            answer.batch = 0
        return answers


class InStages(InOneCall):
    """The same in stages, of which each can be told to fail or to hang at a value."""

    def __init__(self, stage: str = "infer", **kwargs) -> None:
        super().__init__(**kwargs)
        self.stage = stage

    def prepare(self, request):
        self._misbehave("prepare", [request.value])
        return request

    def size(self, prepared):
        return int(abs(prepared.value)) + 1

    def infer(self, prepared):
        if self.stage == "infer":
            return [a.value for a in InOneCall.batch_predict(self, prepared)]
        if self.memory_rows is not None and len(prepared) > self.memory_rows:
            raise RuntimeError("CUDA out of memory (pretended)")
        return [2 * r.value for r in prepared]

    def respond(self, requests, outputs):
        self._misbehave("respond", [r.value for r in requests])
        return [
            NumberResponse(
                request_id=r.request_id, model_name=r.model_name, value=value, note=r.note
            )
            for r, value in zip(requests, outputs, strict=True)
        ]

    def _misbehave(self, stage, values):
        if stage != self.stage:
            return
        if self.hang_on is not None and any(v in self.hang_on for v in values):
            _hang(self.hang_how)
        if self.fail_every is not None and any(v % self.fail_every == 0 for v in values):
            raise ValueError("cannot double this")


class InStagesLater(InStages):
    """The same with a device that goes on alone: half the batches fail at once, the others later."""

    def infer(self, prepared):
        outputs = super().infer(prepared) if len(prepared) % 4 else None
        return lambda: outputs or InStages.infer(self, prepared)


class InStagesBeside(InStagesLater):
    """The same with all stages but ``infer`` in two processes beside the model's, from the first row on."""

    def load(self):
        super().load()
        pipeline.Beside = BesideAtOnce

    def without_model(self):
        return copy(self)


class BesideAtOnce(Beside):
    """Measures nothing, and starts the processes of a backend of these tests when it is made."""

    kind: type = InStagesBeside

    def __init__(self, context, loaded, cpus) -> None:
        at_once = isinstance(loaded.backend, self.kind)
        super().__init__(context, loaded, 2 if at_once else cpus)
        if at_once:
            self._kept, self._rate_of_threads = True, 1.0
            self._starting = threading.current_thread()
            self._start(2)
            wait_until(
                lambda: self._refused or self._pool.is_ready or self._pool.failed, "processes"
            )

    def close(self):
        self._starting = None
        super().close()


class AlwaysBeside(BesideAtOnce):
    """The same of any backend that can."""

    kind = ModelBackend


class InFlight(InOneCall):
    """The same with rows in flight."""

    def __init__(self, most: int = 8, **kwargs) -> None:
        super().__init__(**kwargs)
        self.max_in_flight = most
        self.now = 0
        self.was_full = False

    async def predict_async(self, request):
        if self.hang_on is not None and request.value in self.hang_on:
            await asyncio.sleep(600)
        self.now += 1
        try:
            await asyncio.sleep(0)
            if self.memory_rows is not None:
                await self._fill(self.memory_rows)
                if self.now > self.memory_rows:
                    raise RuntimeError("CUDA out of memory (pretended)")
            return InOneCall.batch_predict(self, [request])[0]
        finally:
            self.now -= 1

    async def _fill(self, rows: int) -> None:
        """Waits for mates, until there were more than ``rows`` for once."""
        until = time.monotonic() + 5
        while not self.was_full and time.monotonic() < until:
            self.was_full = self.now > rows
            await asyncio.sleep(0)


class Moody(InOneCall):
    """Fails at the values of which there is a file in a folder."""

    def __init__(self, moods: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.moods = moods

    def batch_predict(self, requests):
        if any(os.path.exists(os.path.join(self.moods, f"{r.value:g}")) for r in requests):
            raise ValueError("not today")
        return super().batch_predict(requests)


SHAPES = {
    "call": InOneCall,
    "stages": InStages,
    "later": InStagesLater,
    "beside": InStagesBeside,
    "flight": InFlight,
}


def shaped(shape: str | type[Doubler], num_cpus: float = 1, **kwargs) -> ModelSpec:
    """A model that doubles, in one of the three shapes or of a test's own class."""
    cls = SHAPES[shape] if isinstance(shape, str) else shape
    return ModelSpec(
        name="doubler",
        model_type="number",
        backend=f"{cls.__module__}:{cls.__name__}",
        backend_kwargs=kwargs,
        resources=ResourceConfig(num_cpus=num_cpus),
    )


def _wait_while(path: str, seconds: float) -> None:
    """So that a job is still at work when a test stops it, and a rerun is quick."""
    deadline = time.monotonic() + seconds
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)


def _hang(how: str) -> None:
    if how == "spin":
        while True:
            pass
    elif how == "locked":  # in a library, with the interpreter locked
        re.match(r"(a+)+$", "a" * 60 + "b")
    time.sleep(600)


class Confidant(Doubler):
    """Is told secrets."""

    def __init__(self, storage_options: dict, **kwargs) -> None:
        super().__init__(**kwargs)


class Companions(Doubler):
    """Doubles once so many workers have loaded: none does the job before the others are there."""

    def __init__(self, together: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.together = together

    def batch_predict(self, requests):
        deadline = time.monotonic() + 300
        while len(open(self.load_log).readlines()) < self.together:
            if time.monotonic() > deadline:
                raise TimeoutError("the other workers did not come up")
            time.sleep(0.05)
        return super().batch_predict(requests)


class PowerCut(Doubler):
    """Doubles, but once, at a value, takes its step and the run's process down with it."""

    def __init__(self, at: float, once: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.at = at
        self.once = once

    def batch_predict(self, requests):
        if self.at in [r.value for r in requests] and not os.path.exists(self.once):
            open(self.once, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)  # Dagster's default executor: the run's own
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch_predict(requests)


class Scaler(ModelBackend):
    """Multiplies by the number that its weights file holds."""

    model_type = "number"

    @classmethod
    def identify(cls, *, weights: str, **_):
        return weights_digest(weights)

    def __init__(
        self,
        weights: str,
        fail_while: str | None = None,
        replaced_by: str | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.weights = weights
        self.fail_while = fail_while
        self.replaced_by = replaced_by
        self.seconds = seconds

    def load(self) -> None:
        with open(self.weights) as f:
            self.factor = float(f.read())
        if self.replaced_by is not None:
            with open(self.weights, "w") as f:
                f.write(self.replaced_by)

    def predict(self, request):
        if request.value == 99 and self.fail_while and os.path.exists(self.fail_while):
            raise ValueError("cannot scale 99")
        time.sleep(self.seconds)
        return NumberResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            value=request.value * self.factor,
        )


class OpaqueScaler(Scaler):
    """Knows its weights only once they are loaded."""

    @classmethod
    def identify(cls, **_):
        return None

    def model_digest(self):
        return f"factor {self.factor:g}"


class ScalerByProcess(Scaler):
    """As on a cluster whose machines hold different files under the same path."""

    @classmethod
    def identify(cls, **_):
        return f"process {os.getpid()}"


class OpaqueScalerByProcess(Scaler):
    """The same, where it comes out only after the load."""

    @classmethod
    def identify(cls, **_):
        return None

    def model_digest(self):
        return f"process {os.getpid()}"


def scaler(cls: type[Scaler] = Scaler, **kwargs) -> ModelSpec:
    return ModelSpec(
        name="scaler",
        model_type="number",
        backend=f"tests.toys:{cls.__name__}",
        backend_kwargs=kwargs,
    )


def _append(path: str | None, line: str) -> None:
    if path is not None:
        with open(path, "a") as f:
            f.write(line + "\n")


def doubler(num_cpus: float = 1, num_gpus: float = 0, **kwargs) -> ModelSpec:
    return ModelSpec(
        name="doubler",
        model_type="number",
        backend="tests.toys:Doubler",
        backend_kwargs=kwargs,
        resources=ResourceConfig(num_cpus=num_cpus, num_gpus=num_gpus),
    )
