"""Renders as jobs: they run one at a time, outlive the page that started them, and own a folder each.

A page only ever *follows* a job. Whoever holds a job's id may follow, stop or fetch it, so ids are long random words.
Jobs also stand in a book on disk (`ui.book`): a server that is started after one was killed has its jobs and results.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import InputError
from pipeline.media.files import is_full
from pipeline.render.events import DoneEvent, FailedEvent, RenderEvent, RenderResult, StageEvent, StepEvent, WarpEvent
from pipeline.render.report import Report
from pipeline.render.request import RenderRequest
from pipeline.stop import Stopped, check, stoppable
from ui.book import Book, Entry, as_entry, find_root

log = logging.getLogger(__name__)

ACTIVE = ("queued", "running")
MAX_WAITING = 20
MAX_OWN = 3  # that one visitor may have waiting
STOP_SECONDS = 0.6  # after which a visitor who pressed Stop is free, however long a single call goes on
STOPPED = "Stopped. Your clip and settings are as you left them."
INTERRUPTED = (
    "The server was stopped while this was rendered. Your clip and settings are as you left them: press Render to "
    "start it again."
)
BY_WARP = "the warp: what is grey is not known yet"  # seen before the first step
GREY = np.uint8(115)
DISK_FULL = "The disk of the server is full, so that the result could not be written. Please try again later."
Render = Callable[[RenderRequest, Path], Generator[RenderEvent, None, None]]


@dataclass(frozen=True, eq=False)
class JobView:
    """What can be seen of a job at one moment.

    state: queued, running, done, failed, stopped or interrupted (by the end of the server). ahead: renders before this
    one in the queue. fraction: in [0, 1].
    preview: uint8 t h w 3, of the latest step, before it of the warp; preview_by: what made it. seconds_left: None
    until it can be estimated.
    """

    state: str = "queued"
    message: str = "Waiting to start."
    ahead: int = 0
    fraction: float = 0.0
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    preview: np.ndarray | None = None
    preview_by: str = ""
    result: RenderResult | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(eq=False)
class Job:
    id: str
    request: RenderRequest
    folder: Path
    context: contextvars.Context
    asked: RenderRequest | None = None  # with the files as the visitor gave them; None after a restart
    visitor: str = ""
    view: JobView = field(default_factory=JobView)
    cancelled: bool = False
    touched: float = field(default_factory=time.time)


class JobStore:
    """Holds the jobs, runs them on one thread, and removes what nobody has touched for `keep_hours`."""

    def __init__(self, render: Render, *, root: str | Path | None = None, keep_hours: float = 6.0):
        # $GRADIO_TEMP_DIR is where uploads go: on the same disk a clip need not be copied.
        place = os.environ.get("GRADIO_TEMP_DIR") or None
        if place:
            Path(place).mkdir(parents=True, exist_ok=True)
        self.keep_seconds = keep_hours * 3600
        # a relative path would not survive a change of folder
        self.root = Path(root or find_root(place, self.keep_seconds)).resolve()
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._book = Book(self.root)
        self._render = render
        self._jobs: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._changed = threading.Condition()
        self._served: dict[str, int] = {}  # by visitor: when it was last their turn
        self._closed = False
        for entry in self._book.entries():
            self._take_up(entry)
        self._worker = threading.Thread(target=self._work, name="renders", daemon=True)
        self._worker.start()

    def submit(self, request: RenderRequest, visitor: str = "") -> str:
        """Queue a render and return its id. The clip is kept with it: the upload may go before its turn comes.

        A request that this visitor has waiting or running already is that job. Raises `InputError` where too many wait.
        """
        self.clean()
        with self._changed:
            own = [job for job in self._jobs.values() if job.visitor == visitor and job.view.active]
            if same := [job for job in own if visitor and job.asked == request and not job.cancelled]:
                return same[0].id
            if visitor and sum(job in self._queue for job in own) >= MAX_OWN:
                raise InputError(f"{MAX_OWN} renders of yours are waiting already; wait for one of them, or stop it.")
            if len(self._queue) >= MAX_WAITING:
                raise InputError(f"{MAX_WAITING} renders are waiting already; please try again in a few minutes.")
        asked = request
        job_id = secrets.token_hex(16)
        folder = self.new_folder("job", job_id)
        try:
            names = ("clip", "depth", "mask", "first_frame")
            files = {name: getattr(request, name) for name in names if getattr(request, name)}
            request = request.changed(**{name: _keep(path, folder / f"given-{name}") for name, path in files.items()})
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if is_full(error):
                raise InputError(DISK_FULL) from error
            raise InputError("The uploaded file is no longer here; please upload it again.") from error
        # On a shared GPU the visitor's quota lives in the context, which a thread of our own would not see.
        job = Job(job_id, request, folder, contextvars.copy_context(), asked, visitor)
        with self._changed:
            self._jobs[job_id] = job
            self._write_down(job)
            self._queue.append(job)
            self._update_queue()
        return job_id

    def get(self, job_id: Any) -> Job | None:
        """The job of that id, or None if there is none (any more)."""
        return self._jobs.get(job_id) if isinstance(job_id, str) else None

    def cancel(self, job_id: Any) -> None:
        """Stop a job: at once if it waits, else within a second. What computes asks `stop.check`; where one call of a
        library takes longer, its visitor is free all the same.
        """
        with self._changed:
            job = self.get(job_id)
            if job is None or not job.view.active or job.cancelled:
                return
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)
                self._show(job, state="stopped", message="Stopped before it started.", ahead=0)
                self._update_queue()
            else:
                self._show(job, message="Stopping …", seconds_left=None)
                timer = threading.Timer(STOP_SECONDS, self._let_go, [job])
                timer.daemon = True
                timer.start()

    def _let_go(self, job: Job) -> None:
        """Nobody waits for a step that goes on: the visitor is free, the worker ends it before the next render."""
        with self._changed:
            if job.view.active:
                self._show(job, state="stopped", message=STOPPED)

    def follow(self, job_id: Any, *, heartbeat: float = 2.0) -> Iterator[JobView]:
        """Every change of a job's view, from the present one to the last; nothing for an unknown id.

        The view is repeated each `heartbeat` seconds without news, so that a closed page is noticed.
        """
        job = self.get(job_id)
        if job is None:
            return
        seen = None
        while seen is None or seen.active:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: job.view is not seen, timeout=heartbeat)
                seen = job.view
                job.touched = time.time()
            yield seen

    def new_folder(self, kind: str = "view", name: str | None = None) -> Path:
        """A folder of one's own, with a name nobody can guess; it goes the way of old jobs."""
        folder = self.root / f"{kind}-{name or secrets.token_hex(16)}"
        folder.mkdir(mode=0o700)
        return folder

    def clean(self) -> None:
        """Remove folders and finished jobs that nobody has touched for `keep_seconds`."""
        before = time.time() - self.keep_seconds
        with self._changed:
            for job in [job for job in self._jobs.values() if not job.view.active and job.touched < before]:
                del self._jobs[job.id]
                self._forget(job.id)
            kept = {job.folder for job in self._jobs.values()}
        for folder in self.root.iterdir():
            try:
                if folder not in kept and folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # two clean-ups at once
                continue

    def close(self, *, wait: float = 10.0) -> None:
        """Stop the running render, end the worker and remove every folder."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.cancelled = True
            self._changed.notify_all()
        self._worker.join(wait)
        shutil.rmtree(self.root, ignore_errors=True)
        self._book.close()

    def _take_up(self, entry: Entry) -> None:
        """A job of the server before this one."""
        folder = self.root / f"job-{entry.id}"
        try:
            request = RenderRequest.from_json(entry.request, entry.accepted)
            job = Job(entry.id, request, folder, contextvars.copy_context(), None, entry.visitor, touched=entry.touched)
            view = JobView(entry.state, entry.message)
            if entry.state == "running":
                view = JobView("interrupted", INTERRUPTED)
            elif entry.state == "done":
                report = Report.from_dict(json.loads(entry.report), entry.accepted)
                video, source, warp = (folder / f"{name}.mp4" for name in ("result", "source", "warp"))
                result = RenderResult(folder, video, source, warp, report)
                view = replace(view, fraction=1.0, result=result)
        except (InputError, ValueError, KeyError, TypeError):  # of another version of the program
            log.exception("job %s… cannot be taken up", entry.id[:6])
            self._forget(entry.id)
            return
        job.view = view
        self._jobs[job.id] = job
        if view.state == "queued":
            self._queue.append(job)
        self._write_down(job)

    def _write_down(self, job: Job) -> None:
        if self._closed:  # the book is, too
            return
        try:
            self._book.write(as_entry(job))
        except (sqlite3.Error, OSError):  # a full disk: the job goes on
            log.exception("job %s… is not in the book", job.id[:6])

    def _forget(self, job_id: str) -> None:
        try:
            self._book.forget(job_id)
        except (sqlite3.Error, OSError):  # even that takes some space
            log.exception("job %s… stays in the book", job_id[:6])

    # The worker's side.

    def _show(self, job: Job, **changes: Any) -> None:
        with self._changed:
            before = job.view.state
            job.view = replace(job.view, **changes)
            job.touched = time.time()
            if job.view.state != before:
                self._write_down(job)
            self._changed.notify_all()

    def _in_turn(self) -> list[Job]:
        """The queue in rotation: first whose turn was longest ago; among those, who came first."""
        served, waiting, order = dict(self._served), list(self._queue), []
        while waiting:
            job = min(waiting, key=lambda job: served.get(job.visitor, 0))
            waiting.remove(job)
            served[job.visitor] = max(served.values(), default=0) + 1
            order.append(job)
        return order

    def _update_queue(self) -> None:
        busy = any(job.view.state == "running" for job in self._jobs.values())
        for place, job in enumerate(self._in_turn()):
            ahead = place + busy
            renders = "one render is" if ahead == 1 else f"{ahead} renders are"
            words = f"Waiting for its turn: {renders} ahead of yours." if ahead else "Starting …"
            if (job.view.ahead, job.view.message) != (ahead, words):
                self._show(job, ahead=ahead, message=words)
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait(timeout=600)
                    if not self._queue:
                        self.clean()
                if self._closed:
                    return
                job = self._in_turn()[0]
                self._queue.remove(job)
                self._served[job.visitor] = max(self._served.values(), default=0) + 1
                self._show(job, state="running", message="Starting …", ahead=0)
                self._update_queue()
            job.context.run(self._run, job)
            with self._changed:
                self._update_queue()

    def _run(self, job: Job) -> None:
        events = None
        try:
            events = self._render(job.request, job.folder)
            with stoppable(lambda: job.cancelled):
                for event in events:
                    if isinstance(event, DoneEvent):  # a render that is ready is worth more than a late Stop
                        self._show(job, **_changes(event))
                        return
                    check()
                    self._show(job, **_changes(event))
                    if isinstance(event, FailedEvent):
                        return
            self._show(job, state="failed", message="The render ended without a result. Please try again.")
        except Stopped:
            self._show(job, state="stopped", message=STOPPED)
        except InputError as error:
            self._show(job, state="failed", message=str(error))
        except Exception as error:
            log.exception("render %s… failed", job.id[:6])
            if is_full(error):
                self._show(job, state="failed", message=DISK_FULL)
                return
            fault = f"The render failed because of a fault in the program ({type(error).__name__})."
            self._show(job, state="failed", message=f"{fault} Nothing you set is lost.")
        finally:
            if events is not None:
                try:
                    events.close()
                except Exception:
                    log.exception("closing render %s…", job.id[:6])


def _changes(event: RenderEvent) -> dict[str, Any]:
    """What an event changes in the view of its job."""
    if isinstance(event, StageEvent):
        return {"message": event.message, "fraction": event.fraction, "seconds_left": None}
    if isinstance(event, StepEvent):
        return {
            "message": f"Step {event.index} of {event.total}",
            "step": event.index,
            "steps": event.total,
            "fraction": event.fraction,
            "seconds_left": event.seconds_left,
            "preview": event.preview,
            "preview_by": event.preview_by,
        }
    if isinstance(event, WarpEvent):
        return {"preview": np.where(event.mask[::4, ..., None] > 0, event.video[::4], GREY), "preview_by": BY_WARP}
    if isinstance(event, FailedEvent):
        return {"state": "failed", "message": event.message, "seconds_left": None}
    if isinstance(event, DoneEvent):
        return {"state": "done", "message": "Done.", "fraction": 1.0, "seconds_left": None, "result": event.result}
    return {}


def _keep(source: str, folder: Path) -> str:
    """Link a file into a new folder of ours, or copy it where that cannot be.

    It keeps the visitor's name, but for characters that mean something to readers of files, as % in image sequences.
    """
    suffix = Path(source).suffix.lower()
    suffix = suffix if suffix[1:].isalnum() and len(suffix) <= 6 else ""
    name = re.sub(r"[^\w ()-]", "_", Path(source).stem)[:60].strip() or "unnamed"
    folder.mkdir()
    target = folder / (name + suffix)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return str(target)
