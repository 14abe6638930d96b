"""The batcher: rows of many requests in one session call, budgeted in images.

Threads take whatever is queued, at once and without a timer: while one call runs, what arrives meanwhile becomes the
next one. A large request is taken in pieces, in turn with the others, so a request of one image never waits behind one
of ten thousand. Each request has its own deadline, its own error and can be cancelled; a batch that fails is run again
request by request, so that the fault of one never reaches another.

    Engine            threads, admission, the queue's cap, draining
    └── Lane          one bundle: its `render` function, its batch size, its queue of tickets
        └── Ticket    one admitted request: which of its rows are still to be taken, and the images as they come

This module knows nothing of HTTP, BentoML, Prometheus, files or ONNX: a lane is given a function from addresses to
images, and what happened is told to an `Observer`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from augmint.errors import AugmintError, DeadlineError, ServiceError, UnavailableError
from augmint.latent_space import Edit
from augmint.samples import Request

__all__ = ["Edits", "Engine", "Lane", "NoObserver", "Observer", "Render", "Ticket", "power_buckets"]

log = logging.getLogger("augmint.engine")

# (labels int64 [N], seeds uint64 [N], indices uint64 [N], truncation float64 [N], edits) -> images uint8 [N, H, W, C].
# `edits` are (first row, row after the last, edit) of those rows that are edited: they mix with all others in a batch.
# Each row must depend on its own address and edit alone; called by several threads at once.
Edits = Sequence[tuple[int, int, Edit]]
Render = Callable[
    [NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64], Edits], NDArray[np.uint8]
]

# How many rows of one request are taken before it is the next one's turn. Smaller is fairer; larger means fewer
# pieces to hand out.
QUANTUM: Final = 16

Reason = Literal["queue-full", "draining", "deadline", "cancelled", "error"]


class Observer(Protocol):
    """Is told what happens, from several threads; must be quick and must not raise."""

    def batch(self, lane: Lane, rows: int, padding: int, seconds: float, waits: Sequence[float], pending: int) -> None:
        """One session call ended; `waits` are the seconds that each request begun in it had been queued, `pending`
        the images that are now waiting or being made."""

    def refused(self, reason: Reason, images: int) -> None:
        """A request was refused or given up."""


class NoObserver:
    def batch(
        self, lane: Lane, rows: int, padding: int, seconds: float, waits: Sequence[float], pending: int
    ) -> None: ...
    def refused(self, reason: Reason, images: int) -> None: ...


def power_buckets(largest: int) -> tuple[int, ...]:
    """1, 2, 4 … `largest`: the batch sizes that a GPU is warmed for."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(sizes[-1] * 2, largest))
    return tuple(sizes)


class Lane:
    """One bundle's place in the engine.

    Args:
        name: for logs and metrics.
        render: see `Render`.
        image_shape: (height, width, channels).
        batch: most rows of one session call.
        buckets: batch sizes that calls are padded up to, ascending, the last one ≥ `batch`; empty means no padding:
            ONNX Runtime on the CPU takes any size and gives the same bytes, so padding would only waste it.
    """

    def __init__(
        self,
        name: str,
        render: Render,
        image_shape: tuple[int, int, int],
        *,
        batch: int = 64,
        buckets: Sequence[int] = (),
    ) -> None:
        if batch < 1 or (buckets and (list(buckets) != sorted(set(buckets)) or buckets[0] < 1 or buckets[-1] < batch)):
            raise ValueError("batch must be at least 1 and buckets ascending, the last one no smaller than batch")
        self.name = name
        self.image_shape = image_shape
        self.batch = batch
        self.buckets = tuple(buckets)
        self._render = render
        # Below: guarded by the engine's lock.
        self.queue: deque[Ticket] = deque()
        self.active = False  # stands in the engine's list of lanes with something to do
        self.seconds_per_image = 0.0  # of one thread: moving average, 0 until something was measured

    def bucket(self, rows: int) -> int:
        """The size of the session call for so many rows."""
        return next((size for size in self.buckets if size >= rows), rows)

    def render(self, parts: Sequence[_Part]) -> tuple[NDArray[np.uint8], int]:
        """The images of all parts, in order, and how many rows of padding were thrown away."""
        labels: list[int] = []
        seeds: list[int] = []
        indices: list[int] = []
        truncation: list[float] = []
        edits: list[tuple[int, int, Edit]] = []
        for part in parts:
            request = part.ticket.request
            if request.edit:
                edits.append((len(labels), len(labels) + part.rows, request.edit))
            for label, first, n, seed, share in part.runs:
                labels += [label] * n
                indices += range(first, first + n)
                seeds += [seed] * n
                truncation += [share] * n
        rows = len(labels)
        padding = self.bucket(rows) - rows
        if padding:
            labels += [0] * padding
            seeds += [0] * padding
            indices += [0] * padding
            truncation += [1.0] * padding
        images = self._render(
            np.array(labels, dtype=np.int64),
            np.array(seeds, dtype=np.uint64),
            np.array(indices, dtype=np.uint64),
            np.array(truncation, dtype=np.float64),
            edits,
        )
        if images.shape != (rows + padding, *self.image_shape) or images.dtype != np.uint8:
            raise AssertionError(f"{self.name} rendered {images.dtype} {images.shape}, not {rows + padding} images")
        return images[:rows], padding


class Ticket:
    """One admitted request. Made by `Engine.submit`; all but `wait` and the attributes below is the engine's own.

    Attributes:
        request: what was asked.
        images: uint8 [total, H, W, C] once it is done, else None.
        error: why it failed, or None.
        deadline: `time.monotonic()` after which it is given up, or None.
        submitted, begun, ended: `time.monotonic()` of its admission, of the begin of its first batch and of the end of
            its last one; 0 until then.
        batch: rows of its first batch, its own and others'.
    """

    __slots__ = (
        "_event",
        "_left",
        "_offset_in_run",
        "_run",
        "_taken",
        "batch",
        "begun",
        "buffer",
        "context",
        "deadline",
        "done",
        "ended",
        "error",
        "images",
        "lane",
        "request",
        "submitted",
    )

    def __init__(self, lane: Lane, request: Request, deadline: float | None, context: object) -> None:
        self.lane = lane
        self.request = request
        self.deadline = deadline
        self.context = context
        self.images: NDArray[np.uint8] | None = None
        self.error: AugmintError | None = None
        self.done = False
        self.buffer: NDArray[np.uint8] | None = None
        self.submitted = time.monotonic()
        self.begun = self.ended = 0.0
        self.batch = 0
        self._run = 0  # which entry of request.counts comes next …
        self._offset_in_run = 0  # … and how many of its rows are taken already
        self._taken = 0
        self._left = request.total
        self._event: threading.Event | None = None

    @property
    def untaken(self) -> int:
        """Rows that no thread has taken yet."""
        return self.request.total - self._taken

    def _take(self, most: int) -> _Part:
        """The next rows, at most `most` ≥ 1; only called while some are untaken."""
        request = self.request
        start, runs = self._taken, []
        while most and self._run < len(request.counts):
            k = self._run
            asked = request.counts[k][1]
            n = min(asked - self._offset_in_run, most)
            if n:
                seed, share = request.draws[k] if request.draws else (request.seed, request.truncation)
                runs.append((request.label_ids[k], request.firsts[k] + self._offset_in_run, n, seed, share))
            self._offset_in_run += n
            self._taken += n
            most -= n
            if self._offset_in_run == asked:
                self._run += 1
                self._offset_in_run = 0
        return _Part(self, start, self._taken - start, runs)

    def _deliver(self, start: int, images: NDArray[np.uint8]) -> None:
        """Rows from `start` on; called without the lock, by several threads for different rows."""
        if len(images) == self.request.total:
            self.buffer = images  # the whole answer came out of one call: no need to copy it
        elif (buffer := self.buffer) is not None:  # None: cancelled in the meantime
            buffer[start : start + len(images)] = images


@dataclass(slots=True)
class _Part:
    """Rows `start` … `start + rows` of a ticket's answer.

    Attributes:
        runs: (label, first index, how many, seed, truncation).
    """

    ticket: Ticket
    start: int
    rows: int
    runs: list[tuple[int, int, int, int, float]]

    def split(self) -> tuple[_Part, _Part]:
        """Two halves; only called where there are two rows or more."""
        at = left = self.rows // 2
        first: list[tuple[int, int, int, int, float]] = []
        second: list[tuple[int, int, int, int, float]] = []
        for label, index, n, seed, share in self.runs:
            taken = min(n, left)
            left -= taken
            if taken:
                first.append((label, index, taken, seed, share))
            if taken < n:
                second.append((label, index + taken, n - taken, seed, share))
        return _Part(self.ticket, self.start, at, first), _Part(self.ticket, self.start + at, self.rows - at, second)


def _halves(parts: list[_Part]) -> tuple[Sequence[_Part], Sequence[_Part]]:
    if len(parts) == 1:
        first, second = parts[0].split()
        return [first], [second]
    middle = len(parts) // 2
    return parts[:middle], parts[middle:]


class Engine:
    """Threads that turn tickets into images.

    Args:
        threads: how many session calls may run at once: the usable cores on a CPU (with sessions of one thread each),
            one on a GPU.
        queue_images: most images waiting or being made, over all lanes; beyond it `submit` refuses.
        queue_s: seconds of work that may be before a request that is admitted, or half as many as it takes itself if
            those are more: since requests take turns, two of one size then share the machine at any time, and each
            takes twice as long as alone. A queue that everybody stands in helps nobody.
        batching: False runs every request alone: for measuring what batching gains.
        notify: given every list of tickets that ended together, from the thread that ended them; must not block.
        observer: see `Observer`.
    """

    def __init__(
        self,
        *,
        threads: int,
        queue_images: int,
        queue_s: float = math.inf,
        batching: bool = True,
        notify: Callable[[Sequence[Ticket]], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.queue_images = queue_images
        self.queue_s = queue_s
        self.batching = batching
        self.observer: Observer = observer or NoObserver()
        self._notify = notify
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._lanes: deque[Lane] = deque()  # lanes with untaken rows, whose turn is next first
        self._pending = 0
        self._draining = False
        self._closed = False
        self._asleep = 0  # threads that wait for work …
        self._called = False  # … and whether one of them was told that there is some
        self._threads = [
            threading.Thread(target=self._loop, name=f"augmint-engine-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------------------------------ for callers

    @property
    def pending(self) -> int:
        """Images waiting or being made."""
        return self._pending

    @property
    def draining(self) -> bool:
        return self._draining

    def submit(
        self,
        lane: Lane,
        request: Request,
        *,
        deadline: float | None = None,
        context: object = None,
        wake: bool = True,
        admitted: bool = False,
    ) -> Ticket:
        """Admit a request, or say at once why not.

        Args:
            lane: of the bundle.
            request: validated against that bundle.
            deadline: a `time.monotonic()`.
            context: for the caller's own use, as `ticket.context`.
            wake: False leaves it to the caller to call `wake` soon: a caller that has several requests at hand thus
                gets them into one batch, where the first would otherwise be taken alone.
            admitted: this is more of a request that was admitted before: it is neither refused for a full queue nor
                while draining.

        Raises:
            UnavailableError: the queue is too full or too slow ("service.queue-full"), or the engine is draining
                ("service.draining"); `retry_after` estimates the wait in seconds.
            DeadlineError: the deadline has passed already.
        """
        total = request.total
        if deadline is not None and time.monotonic() >= deadline:
            self.observer.refused("deadline", total)
            raise _too_late()
        ticket = Ticket(lane, request, deadline, context)
        refusal: UnavailableError | None
        reason: Reason = "queue-full"
        with self._lock:
            if self._closed or (self._draining and not admitted):
                refusal, reason = _draining(), "draining"
            elif (refusal := None if admitted else self._full(lane, total)) is None:
                self._pending += total
                self._enqueue(ticket)
                if wake:
                    self._call_thread()
        if refusal is not None:
            self.observer.refused(reason, total)
            raise refusal
        return ticket

    def wake(self) -> None:
        """Let a thread look at what was submitted with `wake=False`."""
        # Read without the lock, which costs most while the threads are busy: a thread that is awake or has been called
        # looks for work under the lock before it sleeps, and what was submitted before this call is there by then.
        if self._asleep and not self._called:
            with self._lock:
                self._call_thread()

    def cancel(self, ticket: Ticket, error: AugmintError | None = None, *, reason: Reason = "cancelled") -> None:
        """Give a ticket up: rows not yet taken are never made. A ticket that is done stays as it is."""
        with self._lock:
            if ticket.done:
                return
            self._fail(ticket, error or ServiceError("the request was cancelled.", code="service.cancelled"))
        self.observer.refused(reason, ticket.request.total)
        self._tell([ticket])

    def wait(self, ticket: Ticket, timeout: float | None = None) -> NDArray[np.uint8]:
        """Block until a ticket is done; its images, or its error raised. For callers without an event loop."""
        with self._lock:
            if not ticket.done and ticket._event is None:
                ticket._event = threading.Event()
        if ticket._event is not None and not ticket._event.wait(timeout):
            raise TimeoutError("the ticket is not done yet")
        if ticket.error is not None:
            raise ticket.error
        assert ticket.images is not None
        return ticket.images

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests, finish those admitted; True when all are done within `timeout` seconds."""
        self.stop_admitting()
        with self._lock:
            return self._idle.wait_for(lambda: self._pending == 0, timeout)

    def stop_admitting(self) -> None:
        """The first half of `drain`, without the wait; may be called from a signal handler."""
        self._draining = True

    def close(self) -> None:
        """End the threads; what was still waiting fails as "service.draining"."""
        with self._lock:
            self._draining = self._closed = True
            abandoned = [ticket for lane in self._lanes for ticket in lane.queue if not ticket.done]
            for ticket in abandoned:
                self._fail(ticket, _draining())
            self._lanes.clear()
            self._work.notify_all()
        self._tell(abandoned)
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------------------------------ under the lock

    def _call_thread(self) -> None:
        """Wake one thread, if one sleeps and none is on its way: it calls the next one if it leaves work behind."""
        if self._asleep and not self._called:
            self._called = True
            self._work.notify()

    def _enqueue(self, ticket: Ticket) -> None:
        ticket.lane.queue.append(ticket)
        if not ticket.lane.active:
            ticket.lane.active = True
            self._lanes.append(ticket.lane)

    def _full(self, lane: Lane, total: int) -> UnavailableError | None:
        """Why so many images more cannot be admitted now, if they cannot."""
        pace = lane.seconds_per_image / len(self._threads)
        if self._pending + total > self.queue_images:
            return _queue_full(
                f"{self._pending} images to make already, of {self.queue_images} at most", self._pending * pace
            )
        # Requests take turns, so what others get first is no more than this one's own size each, and what is being made
        # now. Never more than all that is pending, which is looked at first because it is mostly little.
        wait, most = self._pending * pace, max(self.queue_s, total * pace / 2)
        if wait > most:
            others = sum(len(lane.queue) for lane in self._lanes)
            wait = min(wait, (others * max(total, QUANTUM) + len(self._threads) * lane.batch) * pace)
        if wait > most:
            return _queue_full(f"work for {wait:.1f} s already", wait)
        return None

    def _fail(self, ticket: Ticket, error: AugmintError) -> None:
        """End a ticket with an error; what no thread has taken yet is no longer pending."""
        self._settle(ticket.untaken)
        ticket.error = error
        ticket.done = True
        ticket.buffer = None
        ticket._taken = ticket.request.total

    def _settle(self, images: int) -> None:
        self._pending -= images
        if self._pending == 0:
            self._idle.notify_all()

    def _next_batch(self) -> tuple[Lane, list[_Part], list[Ticket]] | None:
        """Wait for work and take a batch of it; with it come tickets found past their deadline. None: closed."""
        while True:
            while not self._lanes:
                if self._closed:
                    return None
                self._asleep += 1
                self._work.wait()
                self._asleep -= 1
                self._called = False
            lane = self._lanes.popleft()
            parts, late = self._fill(lane)
            if lane.queue:
                self._lanes.append(lane)
            else:
                lane.active = False
            if self._lanes:
                self._call_thread()  # another thread may go on with this lane, or the next one, meanwhile
            if parts or late:
                return lane, parts, late

    def _fill(self, lane: Lane) -> tuple[list[_Part], list[Ticket]]:
        parts: list[_Part] = []
        late: list[Ticket] = []
        room, now = lane.batch, time.monotonic()
        # One turn for each: a batch that holds a small request is not filled up with rows of large ones, for which it
        # would have to wait. Where all are large they share the batch.
        share = max(QUANTUM, lane.batch // max(len(lane.queue), 1))
        if any(ticket.untaken <= QUANTUM for ticket in lane.queue):
            share = QUANTUM
        for _ in range(len(lane.queue)):
            if not room:
                break
            ticket = lane.queue.popleft()
            if ticket.done:
                continue
            if ticket.deadline is not None and now >= ticket.deadline:
                late.append(ticket)
                continue
            part = ticket._take(min(room, share) if self.batching else room)
            room -= part.rows
            parts.append(part)
            if ticket.untaken:
                lane.queue.append(ticket)
            if not self.batching:
                break
        return parts, late

    # ------------------------------------------------------------------------------------------ the threads

    def _loop(self) -> None:
        while True:
            with self._lock:
                batch = self._next_batch()
            if batch is None:
                return
            lane, parts, late = batch
            for ticket in late:
                self.cancel(ticket, _too_late(), reason="deadline")
            if parts:
                self._run(lane, parts)
            del batch, lane, parts, late  # or an idle thread would hold the last bundle, whoever replaced it

    def _run(self, lane: Lane, parts: list[_Part]) -> None:
        begun = time.monotonic()
        rows = sum(part.rows for part in parts)
        waits = []
        for part in parts:
            ticket = part.ticket
            if not ticket.begun:
                ticket.begun, ticket.batch = begun, rows
                waits.append(begun - ticket.submitted)
        failed: dict[Ticket, AugmintError] = {}
        padding = self._render_parts(lane, parts, failed)
        seconds = time.monotonic() - begun

        ended: list[Ticket] = []
        with self._lock:
            # A call of few rows is mostly overhead, and a queue fills calls: its pace is theirs.
            if rows >= min(QUANTUM, lane.batch) or not lane.seconds_per_image:
                pace = seconds / rows
                lane.seconds_per_image += (pace - lane.seconds_per_image) * (0.1 if lane.seconds_per_image else 1.0)
            for ticket, fault in failed.items():
                if not ticket.done:
                    self._fail(ticket, fault)
                    ended.append(ticket)
            for part in parts:
                ticket = part.ticket
                ticket._left -= part.rows
                if ticket._left == 0 and not ticket.done:
                    ticket.images, ticket.buffer, ticket.done = ticket.buffer, None, True
                    ticket.ended = begun + seconds
                    ended.append(ticket)
            self._settle(rows)
            pending = self._pending
        # Counted before anybody is told, so that whoever reads the figures after an answer finds it there.
        self.observer.batch(lane, rows, padding, seconds, waits, pending)
        for ticket in failed:
            self.observer.refused("error", ticket.request.total)
        self._tell(ended)

    def _render_parts(self, lane: Lane, parts: list[_Part], failed: dict[Ticket, AugmintError]) -> int:
        """Render in one call, and where that fails in two, and so on: one request may be at fault, or there is no
        memory for so many rows. Tickets of rows that fail alone are added to `failed`. Returns the rows of padding."""
        rows = sum(part.rows for part in parts)
        if rows <= lane.batch:  # else another thread, or the first half, has found that too large meanwhile
            try:
                return self._render_into(lane, parts)
            except Exception as error:
                if rows == 1:
                    log.exception("an image of %s cannot be made", lane.name)
                    failed[parts[0].ticket] = _internal(error)
                    return 0
                log.exception("a batch of %d images of %s failed; it is run in two halves", rows, lane.name)
        before, padding = len(failed), 0
        for half in _halves(parts):
            if alive := [part for part in half if part.ticket not in failed]:
                padding += self._render_parts(lane, alive, failed)
        smaller = -(-rows // 2)
        if len(failed) == before and smaller < lane.batch:  # it was too large: that need not be tried again
            lane.batch = smaller
            log.warning("%s is made in batches of up to %d images from now on", lane.name, smaller)
        return padding

    def _render_into(self, lane: Lane, parts: list[_Part]) -> int:
        for part in parts:
            ticket = part.ticket
            if part.rows != ticket.request.total and ticket.buffer is None and not ticket.done:
                self._allocate(ticket)
        images, padding = lane.render(parts)
        row = 0
        for part in parts:
            if not part.ticket.done:
                part.ticket._deliver(part.start, images[row : row + part.rows])
            row += part.rows
        return padding

    def _allocate(self, ticket: Ticket) -> None:
        buffer = np.empty((ticket.request.total, *ticket.lane.image_shape), dtype=np.uint8)
        with self._lock:  # two threads may hold the first two parts of one ticket
            if ticket.buffer is None and not ticket.done:
                ticket.buffer = buffer

    def _tell(self, tickets: Sequence[Ticket]) -> None:
        if not tickets:
            return
        for ticket in tickets:
            if ticket._event is not None:
                ticket._event.set()
        if self._notify is not None:
            self._notify(tickets)


def _too_late() -> DeadlineError:
    return DeadlineError("the images were not ready in time: ask for fewer at once, or allow more time.")


def _draining() -> UnavailableError:
    return UnavailableError(
        "the service is shutting down: send the request again, to another one or in a moment.",
        code="service.draining",
        retry_after=1.0,
    )


def _queue_full(work: str, wait: float) -> UnavailableError:
    return UnavailableError(
        f"the service has {work}: try again shortly.",
        code="service.queue-full",
        retry_after=max(wait, 0.1),
    )


def _internal(error: Exception) -> ServiceError:
    # What the library said may hold paths: it is in the log, not in the answer.
    made = ServiceError("the images could not be made: the service's log says why.", code="service.internal")
    made.__cause__ = error
    return made
