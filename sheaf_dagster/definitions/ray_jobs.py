"""A step's files as one Ray job, submitted and followed by dagster-ray's Pipes client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pipes import PipesParams, encode_param
from dagster_ray import PipesRayJobClient, PipesRayJobMessageReader

from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.batch.orders import FileOutcome, StepOrder
from sheaf_dagster.definitions.clusters import JobsAddress
from sheaf_dagster.definitions.dashboard import Dashboard, DashboardLostError
from sheaf_dagster.definitions.recorder import StepRecorder
from sheaf_dagster.errors import ClusterError, SpecError
from sheaf_dagster.pipes import ENTRYPOINT, ORDER

__all__ = ["run_as_ray_job"]

Began = Callable[[tuple[str | None, str] | None], StepRecorder]

_POLL_SECONDS = 0.5

_JOB_ID = "ray_job_id"
"""Under which dagster-ray tells of a job that it has submitted."""

_ORDER_BYTES = 96_000
"""The order travels in an environment variable, of which one may hold 128 KiB."""


def run_as_ray_job(
    context: dg.AssetExecutionContext,
    where: JobsAddress,
    order: StepOrder,
    *,
    began: Began,
) -> StepRecorder:
    """Runs a step's files as one Ray job.

    If the step is cancelled, the job is stopped; finished chunks stay for a rerun.

    Args:
        context: The step.
        where: The cluster.
        order: The files.
        began: Called once; with the identity of the weights and the model's version, if the order
            asks for them. The recorder that it gives takes each outcome as it comes in, in the
            thread that reads the job's log.

    Raises:
        ClusterError: The job could not be submitted, or ended without a word.
        SheafError: What the whole job failed with.
    """
    heard = _Heard(began)
    message = order.to_message()
    _check_size(message, len(order.files))
    try:
        dashboard = Dashboard(where)
    except (RuntimeError, OSError) as e:
        raise _not_submitted(where, e) from e
    reader = _LiveReader(heard, dashboard)
    client = PipesRayJobClient(message_reader=reader, poll_interval=_POLL_SECONDS)
    client.client = dashboard
    ended = None
    try:
        client.run(
            context=context,
            submit_job_params={
                "entrypoint": ENTRYPOINT,
                "submission_id": _submission_id(context),
                "runtime_env": _plain(where.runtime_env),
            },
            extras={ORDER: message},
        )
    except (RuntimeError, OSError) as e:  # how a job that exits with 1 is told
        ended = e
    if reader.submitted is None:
        raise _not_submitted(where, ended) from ended
    if not heard.complete and not isinstance(ended, DashboardLostError):
        # A line that was tailed while it was half written is lost to the reader.
        try:
            heard.read(dashboard.get_job_logs(reader.submitted))
        except (RuntimeError, OSError) as e:
            ended = ended or e
    return heard.recorded(reader.submitted, ended)


def _not_submitted(where: JobsAddress, why: Exception | None) -> ClusterError:
    return ClusterError(
        f"no Ray job could be submitted to {where.url}: {why}; check the dashboard's address, and "
        "that the cluster is up. If the cluster asks for a token, set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) for the step"
    )


def _submission_id(context: dg.AssetExecutionContext) -> str:
    # Names the step among the cluster's jobs; another attempt is another job.
    return f"{context.op.name}-{context.run_id}-{context.retry_number}".replace("_", "-")


def _plain(runtime_env: Any) -> dict[str, Any]:
    return json.loads(json.dumps(runtime_env))  # type: ignore[no-any-return]


def _check_size(message: dict[str, Any], files: int) -> None:
    size = len(encode_param(message))
    if size > _ORDER_BYTES:
        raise SpecError(
            f"the description of {files} partitions takes {size:,} bytes, but a Ray job can be given "
            f'only {_ORDER_BYTES:,}; run a smaller range at a time, or build the asset with launch="step"'
        )


class _Heard:
    """What the job has said: outcomes, and how it ended."""

    def __init__(self, began: Began) -> None:
        self._began = began
        self._recorder: StepRecorder | None = None
        self._early: list[FileOutcome] = []
        self._seen: set[int] = set()
        self._lock = threading.Lock()
        self._problem: Exception | None = None
        self.ended = False
        self._error: dict[str, Any] | None = None
        self._last = -1

    @property
    def complete(self) -> bool:
        """Whether the job has said its last word, and none before it was lost."""
        return self.ended and self._seen == set(range(self._last + 1))

    def hear(self, payload: Any) -> bool:
        """Takes in one message, if it is one of ours and new; whether it is ours."""
        if not isinstance(payload, dict) or ORDER not in payload:
            return False
        with self._lock:
            number = payload["number"]
            if number in self._seen:
                return True
            self._seen.add(number)
            body = payload[ORDER]
            try:
                self._act_on(body, number)
            except Exception as e:  # not into the reader, which would take it for a line of text
                self._problem = self._problem or e
        return True

    def _act_on(self, body: dict[str, Any], number: int) -> None:
        if "ended" in body:
            self.ended, self._last, self._error = True, number, body["ended"]
        elif "began" in body:
            self._recorder = self._began(body["began"])
            for outcome in self._early:
                self._recorder.take(outcome)
        elif self._recorder is None:  # the first message was lost, and will be found
            self._early.append(FileOutcome.from_message(body["file"]))
        else:
            self._recorder.take(FileOutcome.from_message(body["file"]))

    def read(self, log: str) -> None:
        """Takes in what a job's whole log holds."""
        for line in log.splitlines():
            if ORDER in line:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict) and message.get("method") == "report_custom_message":
                    self.hear(message["params"]["payload"])

    def recorded(self, job: str, ended: Exception | None) -> StepRecorder:
        """What was recorded of the job; raises what it as a whole failed with."""
        if self._problem is not None:
            raise self._problem
        if self._error is not None:
            raise ErrorMessage.from_dict(self._error).rebuilt()
        if not self.complete and isinstance(ended, DashboardLostError):
            raise ClusterError(
                f"Ray job {job} may still be running, but its state is not known: {ended}. Look at "
                "Ray's dashboard before you run again (finished chunks are kept)"
            ) from ended
        if not self.complete or self._recorder is None:
            raise ClusterError(
                f"Ray job {job} ended before all files were done: "
                f"{ended or 'its log is cut short'}; look at the job's log in the Ray dashboard "
                "and run again (finished chunks are kept)"
            ) from ended
        return self._recorder


class _LiveReader(PipesRayJobMessageReader):
    """Hands our messages on as they come in; Dagster's own go to Dagster."""

    def __init__(self, heard: _Heard, dashboard: Dashboard) -> None:
        super().__init__()
        self._heard = heard
        self._dashboard = dashboard

    def on_launched(self, launched_payload: dg.PipesLaunchedData) -> None:
        """Takes up the job; the base class would make a client that waits for ever."""
        self._client = self._dashboard
        self._job_id = launched_payload["extras"][_JOB_ID]

    @property
    def submitted(self) -> str | None:
        """The job's submission id, once there is one."""
        try:
            return self.job_id
        except RuntimeError:
            return None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        with super().read_messages(_Sorter(handler, self._heard)) as params:  # type: ignore[arg-type]
            yield params


class _Sorter:
    """A message handler before the message handler."""

    def __init__(self, handler: dg.PipesMessageHandler, heard: _Heard) -> None:
        self._handler = handler
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def handle_message(self, message: Any) -> None:
        """One message of the job."""
        custom = message["method"] == "report_custom_message"
        if not (custom and self._heard.hear(message["params"]["payload"])):
            self._handler.handle_message(message)
