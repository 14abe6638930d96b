"""The worker's hand on the jobs: one at a time, part by part, beside whatever is asked for at once.

Every worker has one of these. A job's parts stand in the engine's queue like anybody's, one at a time, so a request
that comes meanwhile has its turn after a few rows. What cannot be done now (a quota, a full queue) is left for later
and the next job taken. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

from augmint.errors import AugmintError, DeadlineError, UnavailableError
from serving.access import Caller
from serving.exchange import Receive
from serving.jobs import Claim, JobStore, RemovedError, StorageError
from serving.library import Library
from serving.maker import Maker
from serving.schema import parse_stream
from serving.settings import Settings
from serving.tracing import Trace
from serving.wish import Wish, read_wish

__all__ = ["JobRunner"]

log = logging.getLogger("augmint.jobs")

_LOOK_EVERY_S: Final = 1.0
_AGAIN_AFTER_S: Final = 5.0


class JobRunner:
    """Works on the jobs of a store until it is stopped. For the event loop that it was made in."""

    def __init__(self, store: JobStore, library: Library, maker: Maker, settings: Settings) -> None:
        self._store = store
        self._library = library
        self._maker = maker
        self._settings = settings
        self._later: dict[str, float] = {}  # id -> `time.monotonic()` before which it cannot go on
        self._woken = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._loop())

    def wake(self) -> None:
        """There is a new job."""
        self._woken.set()

    def begin_stopping(self) -> None:
        """Stop at the part that is being written; another process goes on after it."""
        self._task.cancel()

    async def stop(self) -> None:
        self.begin_stopping()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _loop(self) -> None:
        while True:
            self._woken.clear()
            now = time.monotonic()
            self._later = {job_id: then for job_id, then in self._later.items() if then > now}
            try:
                claim = await _whole(lambda: self._store.claim(self._later))
                if claim is not None:
                    with claim:
                        await self._run(claim)
                    continue
            except RemovedError:
                continue
            except Exception:
                # A disk that fails, say: the jobs stay, and so does whoever works on them.
                log.exception("the jobs cannot be worked on")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._woken.wait()

    async def _run(self, claim: Claim) -> None:
        job = claim.job
        try:
            wish = read_wish(parse_stream(json.dumps(job.wish).encode()), self._library, self._settings)
            await self._write(claim, wish)
            log.info("job %s is done: %d images", job.id, job.total)
        except RemovedError:
            log.info("job %s was removed", job.id)
        except (UnavailableError, DeadlineError) as error:
            wait = getattr(error, "retry_after", None) or _AGAIN_AFTER_S
            self._later[job.id] = time.monotonic() + wait
            log.info("job %s goes on in %.0f s: %s", job.id, wait, error)
        except AugmintError as error:
            log.warning("job %s failed: %s", job.id, error)
            self._fail(claim, str(error))
        except Exception:
            log.exception("job %s failed", job.id)
            self._fail(claim, "the service failed: its log says why, under this job's id.")

    def _fail(self, claim: Claim, error: str) -> None:
        try:
            claim.fail(error)
        except (OSError, StorageError):  # not even that can be written
            self._later[claim.job.id] = time.monotonic() + _AGAIN_AFTER_S
            log.exception("job %s cannot be said to have failed", claim.job.id)

    async def _write(self, claim: Claim, wish: Wish) -> None:
        writer = wish.writer()
        found = await _whole(lambda: claim.open(resumable=wish.form != "zip"))
        if found.done:
            await _whole(lambda: writer.go_on(found.done, claim.before()))
            log.info("job %s goes on after %d of %d images", claim.job.id, found.done, claim.job.total)
        owner = _Owner(claim, self._settings.timeout_s)
        parts = wish.parts(self._maker.most_at_once(owner.caller), done=writer.written)
        async with aclosing(self._maker.pieces(wish.served, parts, owner)) as made:
            async for part, images in made:

                def append() -> None:
                    claim.append(wish.encoded(part, images, writer), writer.written)  # noqa: B023

                await _whole(append)
        await _whole(lambda: claim.finish(writer.sha256))


class _Owner:
    """Whom a job's images are made for: nobody waits for them, and nobody can go away."""

    def __init__(self, claim: Claim, timeout_s: float) -> None:
        self.begun = time.monotonic()
        self.deadline = self.begun + timeout_s
        self.caller = Caller(claim.job.owner, claim.job.images_per_day)
        self.counted = 0
        self.receive: Receive = _never
        self.trace: Trace | None = None


async def _never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _whole(work: Callable[[], Any]) -> Any:
    """What `work` gives, from a thread. Cancelling waits for it: it may be in the middle of a file."""
    task = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await task
        raise
