"""Jobs as files: what was asked for, how far it is, the stream so far. What survives the death of any process.

    JOBS/ID/job.json        who asked for what; written once, before the folder has its name
            progress.json   how far it is; replaced as a whole
            result.part     the stream so far; as many of its bytes count as progress.json says
            result          the whole stream
            lock            held (flock) by the worker that is at it: it falls with its process

A worker claims the oldest job that nobody holds, and goes on where progress.json says. Knows nothing of HTTP, bundles,
or how images are made; for any number of processes on one machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self

from augmint.errors import RequestError, ServiceError, UsageError
from augmint.files import replacing

__all__ = ["Claim", "Job", "JobStore", "Progress", "RemovedError", "StorageError", "no_such_job"]

State = Literal["waiting", "running", "done", "failed"]

_ID: Final = re.compile(r"[0-9a-f]{32}")
_MOST_JOBS: Final = 100  # of one owner
# How much work is lost when a process dies, at most; and how soon it notices that its job was removed.
_SAVE_EVERY_S: Final = 0.5
_READ_BYTES: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StorageError(ServiceError):
    """There is no room for a result."""

    default_code = "service.storage"


class RemovedError(Exception):
    """The job is not there any more: whoever asked for it has cancelled it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        state: of it; a job that is "running" may have lost its worker, and is then claimed by another.
        done: rows that are in the file.
        bytes: of the file that count.
        error: a sentence, where it failed.
        sha256: of the whole file, 64 hex digits, where it is done.
        ended: seconds since 1970, where it is done or failed.
    """

    state: State = "waiting"
    done: int = 0
    bytes: int = 0
    error: str = ""
    sha256: str = ""
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked for.

    Attributes:
        id: 128 random bits.
        folder: its files.
        owner: whoever asked, and nobody else may see it.
        images_per_day: the owner's quota when it was asked for.
        wish: the request's JSON, its seed and its bundle's digest named.
        total: rows that the result will have.
        created: seconds since 1970.
    """

    id: str
    folder: Path
    owner: str
    images_per_day: int | None
    wish: dict[str, Any]
    total: int
    created: float

    @property
    def result(self) -> Path:
        return self.folder / "result"

    @property
    def part(self) -> Path:
        return self.folder / "result.part"

    def progress(self) -> Progress:
        """How far it is.

        Raises:
            RemovedError: it is gone.
        """
        return Progress(**_read_json(self.folder / "progress.json"))


class JobStore:
    """The jobs in a folder.

    Args:
        folder: made where it is not there.
        most_bytes: of all results together, finished or not.
        hours: how long a job is kept after its end.

    Raises:
        UsageError: it cannot be written to.
    """

    def __init__(self, folder: Path, *, most_bytes: int, hours: float) -> None:
        self.folder = folder
        self.most_bytes = most_bytes
        self._kept_s = hours * 3600
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = folder / f".{secrets.token_hex(8)}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise UsageError(
                f"jobs cannot be kept in {folder} ({error.strerror}): set AUGMINT_JOBS to a folder that can be written."
            ) from None

    def add(self, owner: str, images_per_day: int | None, wish: dict[str, Any], total: int, at_least: int) -> Job:
        """Take a job on.

        Args:
            at_least: bytes that the result will have, as far as they are known.

        Raises:
            StorageError: there is no room for it, or its owner has too many.
        """
        if len(list(self.of(owner))) >= _MOST_JOBS:
            raise StorageError(f"there are {_MOST_JOBS} jobs of yours already: fetch them and delete some.")
        if self.used() + at_least > self.most_bytes:
            raise self.full()
        job_id = secrets.token_hex(16)
        job = Job(job_id, self.folder / job_id, owner, images_per_day, wish, total, time.time())
        made = self.folder / f".{job_id}"
        document = {key: value for key, value in asdict(job).items() if key not in ("id", "folder")}
        try:
            with _on_disk():
                made.mkdir(mode=0o700)
                _write_json(made / "job.json", document)
                _write_json(made / "progress.json", asdict(Progress()))
                (made / "lock").touch()
                made.rename(job.folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return job

    def get(self, job_id: str, owner: str) -> Job:
        """A job of this owner.

        Raises:
            RequestError: there is none; code "request.no-job".
        """
        if _ID.fullmatch(job_id):
            with contextlib.suppress(RemovedError):
                job = self._read(job_id)
                if job.owner == owner:
                    return job
        raise no_such_job()

    def of(self, owner: str) -> Iterator[Job]:
        """The jobs of an owner, oldest first."""
        return (job for job in self._all() if job.owner == owner)

    def remove(self, job: Job) -> None:
        """Forget a job and its result; whoever is at it notices soon."""
        gone = self.folder / f".{job.id}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):  # removed twice at once
            job.folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def claim(self, but: Collection[str] = ()) -> Claim | None:
        """The oldest job that is not ended and that nobody is at, for this process alone; None: there is none.

        Args:
            but: ids to be left.
        """
        self._sweep()
        for job in self._all():
            if job.id in but:
                continue
            with contextlib.suppress(RemovedError):
                if job.progress().state in ("waiting", "running") and (claim := Claim.of(self, job)) is not None:
                    return claim
        return None

    def used(self, but: Job | None = None) -> int:
        """Bytes of all results, finished or not; without those of one job."""
        total = 0
        for job in self._all():
            if but is None or job.id != but.id:
                for path in (job.part, job.result):
                    with contextlib.suppress(OSError):
                        total += path.stat().st_size
        return total

    def full(self) -> StorageError:
        return StorageError(
            f"the service keeps at most {self.most_bytes} bytes of results: fetch and delete some, or ask for fewer "
            "images."
        )

    def _read(self, job_id: str) -> Job:
        folder = self.folder / job_id
        return Job(id=job_id, folder=folder, **_read_json(folder / "job.json"))

    def _all(self) -> Iterator[Job]:
        jobs = []
        for name in os.listdir(self.folder):
            if _ID.fullmatch(name):
                with contextlib.suppress(RemovedError):
                    jobs.append(self._read(name))
        return iter(sorted(jobs, key=lambda job: (job.created, job.id)))

    def _sweep(self) -> None:
        """Remove what was kept long enough, and what a process that died has left half made or half removed."""
        now = time.time()
        for path in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > 60:
                    shutil.rmtree(path, ignore_errors=True)
        for job in self._all():
            with contextlib.suppress(RemovedError):
                ended = job.progress().ended
                if ended and now - ended > self._kept_s:
                    self.remove(job)


def no_such_job() -> RequestError:
    return RequestError("there is no such job of yours: it may have been removed.", code="request.no-job")


class Claim:
    """A job that this process is at, and its file. A context manager; for one thread at a time.

    However it ends, what is saved is enough for the next one to go on.
    """

    def __init__(self, store: JobStore, job: Job, lock: int) -> None:
        self.job = job
        self._store = store
        self._lock = lock
        self._file: BinaryIO | None = None
        self._progress = Progress("running")
        self._saved = self._looked = 0.0
        self._others = 0  # bytes of the other jobs

    @classmethod
    def of(cls, store: JobStore, job: Job) -> Self | None:
        """None: another has it, or it has ended."""
        try:
            lock = os.open(job.folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if job.progress().state in ("waiting", "running"):  # it may have ended in between
                return cls(store, job, lock)
        except (BlockingIOError, RemovedError):
            pass
        os.close(lock)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        os.close(self._lock)

    def open(self, *, resumable: bool) -> Progress:
        """Open the file after what counts of it; how far that is.

        Raises:
            RemovedError: the job is gone.
        """
        found = self.job.progress()
        with contextlib.suppress(FileNotFoundError):
            if self.job.part.stat().st_size < found.bytes:
                found = Progress()  # the machine stopped, not a process: what was saved is not there
        if not (resumable and self.job.part.exists()):
            found = Progress()
        with _on_disk():
            self._file = open(os.open(self.job.part, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115
            self._file.truncate(found.bytes)
            self._file.seek(found.bytes)
            self._progress = replace(found, state="running")
            self._save()
        return found

    def before(self) -> Iterator[bytes]:
        """The bytes that are there already, in pieces."""
        left = self._progress.bytes
        with self.job.part.open("rb") as file:
            while left and (piece := file.read(min(left, _READ_BYTES))):
                left -= len(piece)
                yield piece

    def append(self, data: bytes, done: int) -> None:
        """Write the next piece, after which `done` rows are there.

        Raises:
            StorageError: the disk is full, or as much is kept as may be.
            RemovedError: the job is gone.
        """
        assert self._file is not None
        now = time.monotonic()
        if now - self._looked > _SAVE_EVERY_S:
            self._looked, self._others = now, self._store.used(but=self.job)
        if self._others + self._progress.bytes + len(data) > self._store.most_bytes:
            raise self._store.full()
        with _on_disk():
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self._progress = replace(self._progress, done=done, bytes=self._progress.bytes + len(data))
            if done < self.job.total and now - self._saved > _SAVE_EVERY_S:
                self._save()

    def finish(self, sha256: bytes) -> None:
        """All is written: give it its name."""
        assert self._file is not None
        with _on_disk():
            os.fsync(self._file.fileno())
            os.replace(self.job.part, self.job.result)
        self._end(replace(self._progress, state="done", sha256=sha256.hex(), ended=time.time()))

    def fail(self, error: str) -> None:
        """It cannot be done: nothing half written stays.

        Raises:
            RemovedError: the job is gone.
        """
        if self._file is not None:
            self._file.truncate(0)  # first: it may be what fills the disk, and unlinked it does so until it is closed
        self.job.part.unlink(missing_ok=True)
        self._end(Progress("failed", error=error, ended=time.time()))

    def _end(self, progress: Progress) -> None:
        self._progress = progress
        with _on_disk():
            _write_json(self.job.folder / "progress.json", asdict(progress))

    def _save(self) -> None:
        assert self._file is not None
        os.fdatasync(self._file.fileno())  # the bytes before the word that they are there
        _write_json(self.job.folder / "progress.json", asdict(self._progress))
        self._saved = time.monotonic()


def _write_json(path: Path, document: dict[str, Any]) -> None:
    """Replaced as a whole, or not at all."""
    with replacing(path, on_disk=True) as file:
        file.write(json.dumps(document).encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RemovedError from None
    return found


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    """What the file system says, as what it means for a job."""
    try:
        yield
    except FileNotFoundError:
        raise RemovedError from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageError("the service's disk is full: ask for fewer images, or try again later.") from error
