"""From a checked request to images and bytes: limits of the caller, the engine, the quality, the encoders.

Every way of asking for images goes through here, so each of them is counted against the caller's rate and quota, keeps
to its deadline, stops when its client goes and accounts for what was rejected. Knows nothing of addresses or JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from augmint.errors import AugmintError, DeadlineError, ServiceError, UnavailableError
from augmint.samples import Request, Samples
from augmint.selection import Selection
from serving.access import Caller
from serving.bundles import Served
from serving.engine import Engine, Ticket
from serving.exchange import ClientGoneError, Receive
from serving.limits import Quota, RateLimit, shared_file
from serving.metrics import Metrics
from serving.settings import Settings
from serving.tracing import Attributes, Trace

__all__ = ["Asker", "Maker"]

# An answer that takes longer than this has its client watched, to stop when it goes.
_WATCH_AFTER_S: Final = 0.02
# Of a request under a quality, made and judged at once: bounds the memory for those that are not kept.
_CANDIDATES: Final = 1024
T = TypeVar("T")


class Asker(Protocol):
    """Whom images are made for: an `Exchange`, or a job.

    Attributes:
        counted: the images that were counted against the caller last; what is refused gives them back.
    """

    begun: float
    deadline: float
    caller: Caller
    counted: int
    receive: Receive
    trace: Trace | None


class Maker:
    """Has images made. For the event loop that it was made in.

    Attributes:
        threads: session calls at once.
    """

    def __init__(self, settings: Settings, metrics: Metrics, threads: int) -> None:
        self.settings = settings
        self.metrics = metrics
        self.threads = threads
        file = shared_file(settings.workers)
        self._rate = RateLimit(settings.rate_images, settings.max_images, file)
        self._quota = Quota(settings.workers, file)
        self._waking = False
        self._rounds = 0  # requests on their way that ask the engine several times
        self._drained_by = math.inf  # `time.monotonic()` after which they give up
        self._loop = asyncio.get_running_loop()
        self._engine = Engine(
            threads=threads,
            queue_images=settings.queue_images,
            queue_s=settings.queue_s,
            batching=settings.batching,
            notify=self._notify,
            observer=metrics,
        )
        self._encoders = ThreadPoolExecutor(threads, thread_name_prefix="augmint-encode")
        for _ in range(threads):  # started now: none can be once memory is short
            self._encoders.submit(time.sleep, 0.001)

    @property
    def pending(self) -> int:
        """Images waiting or being made."""
        return self._engine.pending

    def stop_admitting(self) -> None:
        self._drained_by = min(self._drained_by, time.monotonic() + self.settings.timeout_s)
        self._engine.stop_admitting()

    async def stop(self) -> None:
        """Finish what was admitted and end the threads."""
        # Between two rounds of a request the engine has nothing of it.
        end = time.monotonic() + self.settings.timeout_s
        while self._rounds and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await self._loop.run_in_executor(None, self._engine.drain, self.settings.timeout_s)
        await self._loop.run_in_executor(None, self._engine.close)
        self._encoders.shutdown(wait=False)
        self._rate.close()
        self._quota.close()

    # ------------------------------------------------------------------------------------------ making

    def take(self, exchange: Asker, images: int) -> None:
        """Count images against their caller's rate and quota; if the engine refuses them, they are not counted.

        Raises:
            UnavailableError: they are too many.
        """
        caller = exchange.caller
        self._rate.take(caller.name, images)
        try:
            self._quota.take(caller.name, caller.images_per_day, images)
        except UnavailableError:
            self._rate.charge(caller.name, -images)
            raise
        exchange.counted = images

    def most_at_once(self, caller: Caller) -> int | None:
        """Images that this caller's quota can ever hold; None: it has none."""
        return None if caller.images_per_day is None else self._quota.most(caller.images_per_day)

    async def images(
        self, served: Served, request: Request, exchange: Asker, *, admitted: bool = False
    ) -> NDArray[np.uint8]:
        """The images of a request without a quality, uint8 [N, H, W, C].

        Args:
            served: the bundle.
            request: checked against it.
            exchange: whose deadline holds, and whose client is watched.
            admitted: this is more of what was admitted before; see `Engine.submit`.

        Raises:
            UnavailableError, DeadlineError, ServiceError: see `Engine.submit`.
            ClientGoneError: nobody waits any more; what was not begun is never made.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        engine, deadline = self._engine, exchange.deadline
        try:
            ticket = engine.submit(
                served.lane, request, deadline=deadline, context=future, wake=False, admitted=admitted
            )
        except AugmintError:
            if not admitted:
                self._rate.charge(exchange.caller.name, -exchange.counted)
                self._quota.charge(exchange.caller.name, -exchange.counted)
            raise
        if not self._waking:
            # One turn of the loop later: by then every request that arrived with this one is in the queue too.
            self._waking = True
            self._loop.call_soon(self._wake_engine)
        guard: asyncio.Task[None] | None = None

        def watch() -> None:
            nonlocal guard
            guard = self._loop.create_task(_watch(exchange.receive, engine, ticket, deadline))

        timer = self._loop.call_later(_WATCH_AFTER_S, watch)
        try:
            await future
        except asyncio.CancelledError:
            engine.cancel(ticket)
            raise
        finally:
            timer.cancel()
            if guard is not None:
                guard.cancel()
        if exchange.trace is not None:
            _note(exchange.trace, exchange.begun, served, ticket)
        if isinstance(ticket.error, _Gone):
            raise ClientGoneError
        if ticket.error is not None:
            raise ticket.error
        assert ticket.images is not None
        return ticket.images

    async def select(self, served: Served, request: Request, exchange: Asker) -> Samples:
        """The samples of a request under a quality: candidates are made and judged until there are enough, in rounds
        that others' requests mix with. Raises as `images` does."""
        selection = Selection(request)
        most = min(_CANDIDATES, self.settings.queue_images)
        self._rounds += 1
        try:
            while (candidates := selection.next(most)) is not None:
                images = await self.images(served, candidates, exchange, admitted=selection.examined > 0)
                labels, _ = candidates.addresses()
                reasons = await self.aside(lambda: served.judge(images, labels, request.quality))  # noqa: B023
                selection.add(candidates, images, reasons)
        finally:
            self._rounds -= 1
            beyond = max(selection.examined - request.total, 0)
            self._rate.charge(exchange.caller.name, beyond)
            self._quota.charge(exchange.caller.name, beyond)
        return selection.samples(served.info)

    async def pieces(
        self, served: Served, parts: Iterator[Request], exchange: Asker
    ) -> AsyncGenerator[tuple[Request, NDArray[np.uint8]], None]:
        """The images of a long answer, part by part: one is made ahead of the reader, and no more.

        The service's time limit, the caller's rate and quota hold for each part. Where the rate is used up the next
        part waits for it, for as long as the time limit.

        Raises:
            UnavailableError, DeadlineError, ServiceError, ClientGoneError: as `images` and `take`.
        """
        limit_s = exchange.deadline - exchange.begun

        def begin(part: Request, admitted: bool) -> asyncio.Task[NDArray[np.uint8]]:
            return self._loop.create_task(self._piece(served, part, exchange, limit_s, admitted))

        part: Request | None = next(parts)
        assert part is not None
        task = begin(part, admitted=False)
        self._rounds += 1
        try:
            while part is not None:
                images = await task
                made, part = part, next(parts, None)
                if part is not None:
                    task = begin(part, admitted=True)
                yield made, images
        finally:
            self._rounds -= 1
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, AugmintError, ClientGoneError):
                await task

    async def _piece(
        self,
        served: Served,
        part: Request,
        exchange: Asker,
        limit_s: float,
        admitted: bool,
    ) -> NDArray[np.uint8]:
        deadline = time.monotonic() + limit_s
        while True:
            if time.monotonic() > self._drained_by:
                raise ServiceError("the service is shutting down.", code="service.draining")
            try:
                self.take(exchange, part.total)
                break
            except UnavailableError as error:
                wait = error.retry_after or 0.0
                if not admitted or time.monotonic() + wait > deadline:
                    raise
                await asyncio.sleep(wait)
        exchange.deadline = time.monotonic() + limit_s
        return await self.images(served, part, exchange, admitted=admitted)

    async def aside(self, work: Callable[[], T]) -> T:
        """What `work` gives, from a thread of the encoders, so that others are answered meanwhile."""
        return await self._loop.run_in_executor(self._encoders, work)

    # ------------------------------------------------------------------------------------------ the engine's side

    def _wake_engine(self) -> None:
        self._waking = False
        self._engine.wake()

    def _notify(self, tickets: Sequence[Ticket]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_wake, tickets)


def _note(trace: Trace, arrived: float, served: Served, ticket: Ticket) -> None:
    if not trace.stages:
        trace.add("admit", arrived, ticket.submitted)
    now = time.monotonic()
    trace.add("queue", ticket.submitted, ticket.begun or now)
    if ticket.begun:
        request = ticket.request
        about: Attributes = {
            "augmint.bundle": served.info.digest,
            "augmint.images": request.total,
            "augmint.labels": len(request.counts),
            "augmint.batch_images": ticket.batch,
        }
        trace.add("infer", ticket.begun, ticket.ended or now, about)


class _Gone(ServiceError):
    """The client went away: there is nobody to tell."""


def _wake(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        future = ticket.context
        if isinstance(future, asyncio.Future) and not future.done():
            future.set_result(None)


async def _watch(receive: Receive, engine: Engine, ticket: Ticket, deadline: float) -> None:
    """Give the ticket up when its client goes or its time is up, whichever is first."""
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        error = DeadlineError("the images were not ready in time: ask for fewer at once, or allow more time.")
        engine.cancel(ticket, error, reason="deadline")
    else:
        engine.cancel(ticket, _Gone("the client went away.", code="service.cancelled"))
