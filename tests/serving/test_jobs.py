"""Jobs: the bytes of a stream in a file, whatever dies on the way; one's own alone; no room is a sentence."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from augmint import Generator
from augmint.endmark import check_bytes
from augmint.errors import RequestError, UsageError
from serving.jobs import Job, JobStore, RemovedError, StorageError
from tests.serving.conftest import Reply, Service, bentoml_serve
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # a fixture
from tests.serving.test_service import tiny as tiny

JOB = {"counts": {"dog": 40, "cat": 60}, "seed": 5, "format": "npy"}
LONG = {"counts": {"dog": 7_500, "cat": 7_500}, "seed": 5, "format": "npy"}
NONE = "0" * 32


# ---------------------------------------------------------------------------------------------- with a server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


def served(folder: Path, bundle: Path, workers: int, name: str) -> Any:
    """A service that makes one image at a time, so that a job can be caught at work."""
    return bentoml_serve(
        folder / name,
        AUGMINT_BUNDLES=str(bundle),
        AUGMINT_WORKERS=str(workers),
        AUGMINT_BATCH="1",
        AUGMINT_DRAIN_S="0",
        AUGMINT_JOBS=str(folder / "kept"),
    )


@pytest.fixture(scope="module")
def keeping(folder: Path, tiny_bundle: Path) -> Iterator[Service]:
    with served(folder, tiny_bundle, 2, "first") as service:
        service.wait_until_ready()
        yield service


def begun(service: Service, wish: Any) -> str:
    reply = service.ask("POST", "/v1/jobs", wish)
    assert reply.status == 202, reply.body
    assert reply.json()["state"] == "waiting"
    return reply.headers["location"]


def until(service: Service, path: str, reached: Callable[[Any], bool], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not reached(found := service.ask("GET", path).json()):
        assert found["state"] != "failed", found
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def is_done(found: Any) -> bool:
    return bool(found["state"] == "done")


@pytest.mark.xdist_group("jobs")
@pytest.mark.parametrize("form", ["tar", "npy", "zip"])
def test_a_job_is_a_stream_in_a_file(keeping: Service, form: str) -> None:
    path = begun(keeping, {**JOB, "format": form})
    found = until(keeping, path, is_done)
    assert (found["done"], found["total"], found["error"]) == (100, 100, "")
    reply = keeping.ask("GET", f"{path}/result")
    assert reply.status == 200
    assert reply.body == keeping.ask("POST", "/v1/stream", {**JOB, "format": form}).body
    assert len(reply.body) == found["bytes"] == int(reply.headers["content-length"])
    # A fetch that was cut goes on, if the file is still the same.
    tag = {"If-Range": reply.headers["etag"]}
    rest = keeping.ask("GET", f"{path}/result", headers={"Range": "bytes=1000-", **tag})
    assert (rest.status, rest.body) == (206, reply.body[1000:])
    assert rest.headers["content-range"] == f"bytes 1000-{len(reply.body) - 1}/{len(reply.body)}"
    assert rest.headers["repr-digest"] == reply.headers["repr-digest"]
    for span, expected in {"bytes=0-9": reply.body[:10], "bytes=-7": reply.body[-7:]}.items():
        assert keeping.ask("GET", f"{path}/result", headers={"Range": span}).body == expected
    other = keeping.ask("GET", f"{path}/result", headers={"Range": "bytes=1000-", "If-Range": '"other"'})
    assert (other.status, other.body) == (200, reply.body)
    problem(keeping.ask("GET", f"{path}/result", headers={"Range": "bytes=999999999-"}), 416, "range")
    assert keeping.ask("GET", f"{path}/result", headers={"If-None-Match": reply.headers["etag"]}).status == 304
    head = keeping.ask("HEAD", f"{path}/result")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(reply.body)), b"")
    assert path.rpartition("/")[2] in [job["id"] for job in keeping.ask("GET", "/v1/jobs").json()["jobs"]]
    assert keeping.ask("DELETE", path).status == 204
    problem(keeping.ask("GET", path), 404, "no-job")


def worker_at(service: Service, path: str) -> int:
    """The process that has the job's file open."""
    job_id = path.rpartition("/")[2]
    for process in psutil.Process(service.process.pid).children(recursive=True):
        if any(job_id in file.path for file in process.open_files()):
            return process.pid
    raise AssertionError("nobody is at it")


@pytest.mark.xdist_group("jobs")
def test_a_job_survives_the_death_of_its_worker_and_a_restart(
    keeping: Service, folder: Path, tiny: Generator, tiny_bundle: Path
) -> None:
    """Last with this service, which it ends."""
    path = begun(keeping, LONG)
    before = until(keeping, path, lambda found: found["done"] > 0)
    os.kill(worker_at(keeping, path), signal.SIGKILL)
    after = until(keeping, path, lambda found: found["done"] > before["done"])
    assert after["state"] == "running", "it must be ended while the job is under way"
    assert keeping.stop() == 0
    with served(folder, tiny_bundle, 1, "second") as again:
        again.wait_until_ready()
        until(again, path, is_done)
        result = again.ask("GET", f"{path}/result").body
        log = again.log.read_text() + keeping.log.read_text()
    expected = tiny.generate(LONG["counts"], seed=5).images  # type: ignore[arg-type]
    assert np.array_equal(np.load(io.BytesIO(result)), expected)
    assert check_bytes(result, "npy") == len(expected)
    assert log.count(" goes on after ") == 2


# ---------------------------------------------------------------------------------------------- without a server


async def job_of(service: Harness, path: str, client: str = "1.2.3.4", **more: Any) -> Reply:
    reply = await service.ask(method="GET", path=path, client=client, **more)
    assert reply is not None
    return reply


async def ended(service: Harness, path: str) -> Any:
    async with asyncio.timeout(10):
        while (found := (await job_of(service, path)).json())["state"] in ("waiting", "running"):
            await asyncio.sleep(0.02)
    return found


async def add(service: Harness, wish: Any = JOB, client: str = "1.2.3.4") -> str:
    reply = await service.ask(wish, path="/v1/jobs", client=client)
    assert reply is not None
    assert reply.status == 202, reply.body
    return reply.headers["location"]


def test_jobs_are_their_owners_alone(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        path = await add(service)
        await ended(service, path)
        for other in (path, f"{path}/result"):
            problem(await job_of(service, other, client="5.6.7.8"), 404, "no-job")
        problem(await service.ask(method="DELETE", path=path, client="5.6.7.8"), 404, "no-job")
        assert (await job_of(service, "/v1/jobs", client="5.6.7.8")).json() == {"jobs": []}
        assert (await job_of(service, f"{path}/result")).status == 200

    run(scenario, jobs=tmp_path)


@pytest.mark.parametrize("name", [NONE, "..", "x" * 32, "0" * 31, "job.json", "%2e%2e"])
def test_ids_that_are_none(run: Callable[..., None], tmp_path: Path, name: str) -> None:
    async def scenario(service: Harness) -> None:
        (tmp_path / "job.json").write_text("{}")
        problem(await job_of(service, f"/v1/jobs/{name}"), 404, "no-job")
        problem(await job_of(service, f"/v1/jobs/{name}/result"), 404, "no-job")

    run(scenario, jobs=tmp_path)


def test_a_service_without_jobs_says_so(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        assert "/v1/stream" in problem(await service.ask(JOB, path="/v1/jobs"), 404, "no-jobs")["detail"]
        problem(await job_of(service, "/v1/jobs"), 404, "no-jobs")
        problem(await job_of(service, f"/v1/jobs/{NONE}/result"), 404, "no-jobs")

    run(scenario)


def test_a_job_is_cancelled_midway_and_others_are_answered_meanwhile(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        path = await add(service, {**JOB, "counts": {"cat": 1_000_000}})
        await service.until(lambda: bool(service.calls))
        problem(await job_of(service, f"{path}/result"), 409, "not-finished")
        service.gate.set()
        # Its parts and a request's rows take turns.
        reply = await service.ask({"counts": {"dog": 100}, "seed": 1})
        assert reply is not None
        assert reply.status == 200
        assert (await job_of(service, path)).json()["state"] == "running"
        gone = await service.ask(method="DELETE", path=path)
        assert gone is not None
        assert (gone.status, gone.body) == (204, b"")
        await service.until(lambda: service.api.pending == 0)
        assert not list(tmp_path.iterdir())

    run(scenario, jobs=tmp_path)


def test_more_than_may_be_kept_fails_with_a_sentence(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        # Known before:
        reply = await service.ask({**JOB, "counts": {"cat": 1_000_000}}, path="/v1/jobs")
        assert "at most 50000 bytes" in problem(reply, 507, "storage")["detail"]
        # Known only when it is there:
        path = await add(service, {**JOB, "counts": {"cat": 1000}, "format": "tar"})
        found = await ended(service, path)
        assert found["state"] == "failed"
        assert "at most 50000 bytes of results" in found["error"]
        problem(await job_of(service, f"{path}/result"), 409, "not-finished")
        assert not list(tmp_path.rglob("result*"))
        # Everything else goes on.
        assert (await ended(service, await add(service)))["state"] == "done"

    run(scenario, jobs=tmp_path, jobs_bytes=50_000)


def test_a_full_disk_fails_the_job_and_nothing_else(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # No file may grow beyond this: what the system says then is what it says of a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            path = await add(service, {**JOB, "counts": {"cat": 1000}, "format": "tar"})
            found = await ended(service, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert found["state"] == "failed"
        assert "disk is full" in found["error"]
        assert not list(tmp_path.rglob("result*"))
        reply = await service.ask({"counts": {"dog": 10}, "seed": 1})
        assert reply is not None
        assert reply.status == 200
        assert (await ended(service, await add(service)))["state"] == "done"

    run(scenario, jobs=tmp_path)


def test_a_job_waits_for_its_owners_rate_and_lets_others_pass(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        path = await add(service, {**JOB, "counts": {"cat": 80}}, client="1.2.3.4")
        assert (await ended(service, path))["state"] == "done"
        waits = await add(service, {**JOB, "counts": {"cat": 80}}, client="1.2.3.4")
        other = await add(service, {**JOB, "counts": {"cat": 80}}, client="5.6.7.8")
        async with asyncio.timeout(10):
            while (await job_of(service, other, client="5.6.7.8")).json()["state"] != "done":
                await asyncio.sleep(0.02)
        assert (await job_of(service, waits)).json()["done"] == 0

    run(scenario, jobs=tmp_path, max_images=100, rate_images=0.01, timeout_s=0.5)


def test_a_job_whose_bundle_is_gone_says_so(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        store = service.api.context.jobs[0]  # type: ignore[index]
        wish = {**JOB, "bundle": "0" * 64, "seed": "5"}
        job = store.add("1.2.3.4", None, wish, 100, 0)
        found = await ended(service, f"/v1/jobs/{job.id}")
        assert found["state"] == "failed"
        assert "there is no bundle" in found["error"]

    run(scenario, jobs=tmp_path)


def test_a_job_that_cannot_be_made_says_so(run: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()

        def failing(*rows: Any) -> Any:
            raise RuntimeError("the GPU fell off the bus")

        service.api.context.library.find("tiny").lane._render = failing
        found = await ended(service, await add(service))
        assert found["state"] == "failed"
        assert "the images could not be made" in found["error"]

    run(scenario, jobs=tmp_path)


# ---------------------------------------------------------------------------------------------- the files


def store_of(folder: Path, **options: Any) -> JobStore:
    return JobStore(folder, **{"most_bytes": 1 << 20, "hours": 1.0, **options})


def added(store: JobStore, owner: str = "ann") -> Job:
    return store.add(owner, None, {"format": "npy"}, 10, 0)


def test_a_job_has_one_worker_at_a_time_and_the_next_goes_on(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = added(store)
    claim = store.claim()
    assert claim is not None
    assert store_of(tmp_path).claim() is None
    with claim:
        assert claim.open(resumable=True).done == 0
        claim.append(b"abc", 3)
        claim._save()
        claim.append(b"de", 5)  # not said to be there, when its worker dies
    again = store_of(tmp_path).claim()
    assert again is not None
    with again:
        found = again.open(resumable=True)
        assert (found.done, found.bytes) == (3, 3)
        assert b"".join(again.before()) == b"abc"
        again.append(b"xyz", 10)
        again.finish(b"\1" * 32)
    assert job.result.read_bytes() == b"abcxyz"
    assert job.progress().state == "done"
    assert store.claim() is None


def test_what_cannot_go_on_begins_again(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = added(store)
    with store.claim() as claim:  # type: ignore[union-attr]
        claim.open(resumable=False)
        claim.append(b"abc", 3)
        claim._save()
    with store.claim() as claim:  # type: ignore[union-attr]
        assert claim.open(resumable=False).done == 0
        claim.append(b"abcde", 10)
        claim.finish(b"\1" * 32)
    assert job.result.read_bytes() == b"abcde"


def test_what_was_lost_with_the_machine_is_made_again(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = added(store)
    with store.claim() as claim:  # type: ignore[union-attr]
        claim.open(resumable=True)
        claim.append(b"abc", 3)
        claim._save()
    os.truncate(job.part, 1)
    with store.claim() as claim:  # type: ignore[union-attr]
        assert claim.open(resumable=True).done == 0
        assert job.part.read_bytes() == b""


def test_a_job_that_fails_gives_its_room_back_at_once(tmp_path: Path) -> None:
    """Though its file is still open: or a full disk would have no room for the word that it failed."""
    store = store_of(tmp_path)
    job = added(store)
    with store.claim() as claim:  # type: ignore[union-attr]
        claim.open(resumable=True)
        claim.append(b"abc", 3)
        with job.part.open("rb") as reader:
            claim.fail("no room.")
            assert os.fstat(reader.fileno()).st_size == 0
    assert job.progress().error == "no room."


def test_a_removed_job_stops_its_worker(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    job = added(store)
    with store.claim() as claim:  # type: ignore[union-attr]
        claim.open(resumable=True)
        store.remove(job)
        store.remove(job)
        with pytest.raises(RemovedError):
            claim.finish(b"\1" * 32)
    with pytest.raises(RequestError, match="removed"):
        store.get(job.id, "ann")


def test_results_are_kept_for_their_hours(tmp_path: Path) -> None:
    store = store_of(tmp_path, hours=0.3 / 3600)
    job = added(store)
    with store.claim() as claim:  # type: ignore[union-attr]
        claim.open(resumable=True)
        claim.append(b"abc", 10)
        claim.finish(b"\1" * 32)
    assert store.claim() is None
    assert job.result.exists()
    time.sleep(0.35)
    assert store.claim() is None
    assert not job.folder.exists()


def test_an_owner_has_so_many_jobs_at_most(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    for _ in range(100):
        added(store)
    with pytest.raises(StorageError, match="100 jobs of yours"):
        added(store)
    added(store, "bob")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="AUGMINT_JOBS"):
        store_of(tmp_path / "file")
