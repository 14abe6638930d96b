"""Bundles that come, go and change while they are served; versions of one name side by side."""

from __future__ import annotations

import asyncio
import gc
import http.client
import logging
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest

from augmint import Client, Generator
from augmint.bundle import read_bundle
from augmint.errors import UnknownBundleError
from augmint.signing import make_key, sign
from serving.api import Api
from serving.bundles import Served, open_bundle
from serving.library import Library
from serving.metrics import Metrics
from serving.settings import Settings
from serving.watcher import Watcher
from tests.augmint.broken_bundles import read_manifest, write_manifest
from tests.serving.conftest import Service, bentoml_serve
from tests.serving.test_api import Harness, problem
from tests.serving.test_api import run as run  # the fixture
from tests.tinybundle import write_tiny_bundle


def version(path: Path, day: int, *, seed: int = 0, name: str = "tiny") -> Path:
    """A bundle whose checkpoint was written on that day of 2026-01."""
    write_tiny_bundle(path, seed=seed, name=name)
    document = read_manifest(path)
    document["identity"]["trained"] = f"2026-01-{day:02}T00:00:00+00:00"
    write_manifest(path, document)
    return path


def put(bundle: Path, place: Path) -> None:
    """As an export does: under a hidden name, then renamed; what was there goes first."""
    half = place.with_name(f".{place.name}")
    shutil.copytree(bundle, half)
    if place.exists():
        place.rename(place.with_name(".old"))
        shutil.rmtree(place.with_name(".old"))
    half.rename(place)


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------- under load


class Load:
    """Clients that ask for one image again and again, each over a connection of its own."""

    def __init__(self, service: Service, bundle: str, clients: int = 4) -> None:
        self.answers: list[tuple[int, str, int, bytes]] = []  # status, digest, seed, body
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(service, bundle, i)) for i in range(clients)]

    def _ask(self, service: Service, bundle: str, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        seed = client
        while not self._end.is_set():
            seed += 100
            body = f'{{"bundle": "{bundle}", "counts": {{"dog": 1}}, "seed": {seed}, "format": "npy"}}'
            connection.request("POST", "/v1/generate", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            digest = reply.getheader("Augmint-Bundle", "")
            self.answers.append((reply.status, digest, seed, reply.read()))
            time.sleep(0.002)
        connection.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def test_bundles_come_change_and_go_under_load(tmp_path: Path) -> None:
    versions = [version(tmp_path / f"v{i}", day=i + 1, seed=i) for i in range(4)]
    digests = [read_bundle(path).digest for path in versions]
    place = tmp_path / "bundles"
    anchor = write_tiny_bundle(place / "anchor")  # always there
    damaged = Path(shutil.copytree(versions[3], tmp_path / "damaged"))
    (damaged / "golden.npy").write_bytes(b"no images")
    unsigned = write_tiny_bundle(tmp_path / "unsigned", seed=9)
    alice, _, public = make_key("alice", tmp_path / "keys")
    for path in (anchor, *versions):
        sign(path, alice)
    shutil.copytree(versions[0], place / "hot")

    with bentoml_serve(
        tmp_path / "home", AUGMINT_BUNDLES=str(place), AUGMINT_POLL_S="0.15", AUGMINT_TRUST=str(public)
    ) as service:
        service.wait_until_ready()

        def newest() -> str:
            reply = service.ask("GET", "/v1/bundles/tiny")
            return str(reply.json()["digest"]) if reply.status == 200 else ""

        with Load(service, "tiny") as load, Load(service, "anchor", clients=1) as calm:
            for number in (1, 2, 3):
                put(versions[number], place / "hot")
                until(lambda number=number: newest() == digests[number])  # type: ignore[misc]
            shutil.copytree(damaged, place / "bad")
            shutil.copytree(unsigned, place / "unsigned")
            until(lambda: service.log.read_text().count("refused: ") == 2)
            put(versions[2], place / "beside")  # an older one: the name goes on meaning the newest
            until(lambda: service.ask("GET", f"/v1/bundles/tiny@{digests[2][:8]}").status == 200)
            assert newest() == digests[3]
            listed = [b for b in service.ask("GET", "/v1/bundles").json()["bundles"] if b["name"] == "tiny"]
            assert [(b["digest"], b["latest"]) for b in listed] == [(digests[3], True), (digests[2], False)]
            metrics = service.ask("GET", "/metrics").body.decode()
            assert "augmint_bundles_refused 2.0" in metrics
            with Client(f"http://127.0.0.1:{service.port}", bundle="tiny") as client:
                assert client.generate({"cat": 2}, seed=1).bundle == digests[3]
            address = f"tiny@{digests[2][:12]}"
            with Client(f"http://127.0.0.1:{service.port}", bundle=address) as client:
                local = Generator(versions[2], device="cpu", threads=1).generate({"cat": 2}, seed=1)
                assert client.info().digest == digests[2]
                assert np.array_equal(client.generate({"cat": 2}, seed=1).images, local.images)
            shutil.rmtree(place / "beside")
            shutil.rmtree(place / "hot")
            until(lambda: {status for status, *_ in load.answers[-20:]} == {404})
        assert service.ask("GET", "/readyz").status == 200
        log = service.log.read_text()

    generators = {d: Generator(p, device="cpu", threads=1) for d, p in zip(digests, versions, strict=True)}
    seen = []
    for status, digest, seed, body in load.answers:
        if status == 404:
            assert b"unknown-bundle" in body
            continue
        assert status == 200, body
        assert body.endswith(generators[digest].generate({"dog": 1}, seed=seed).images.tobytes())
        seen.append(digest)
    assert set(seen) == set(digests)
    assert {status for status, *_ in calm.answers} == {200}
    assert log.count("refused: ") == 2
    assert "/bad/golden.npy has " in log
    assert "/unsigned is not signed" in log
    assert "Traceback" not in log


# ------------------------------------------------------------------------------------------------- one look at a time


class Watched:
    """A watcher of a directory, and how often it opened a bundle."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.opened: list[Path] = []
        self.settings = Settings(bundles=(place,), device="cpu", batch=4, **settings)
        self.watcher = Watcher(self.settings, self.open)

    def open(self, path: Path) -> Served:
        self.opened.append(path)
        return open_bundle(path, self.settings)

    def begin(self, *paths: Path) -> None:
        """Serve these, as at the start."""
        self.watcher.served = {path: self.open(path) for path in paths}

    @property
    def digests(self) -> list[str]:
        return [bundle.info.digest for bundle in self.watcher.bundles]


def test_a_copy_that_grows_is_left_alone_until_it_is_whole(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Watched(tmp_path)
    target = tmp_path / "tiny"
    target.mkdir()
    for name in ("manifest.json", *sorted(p.name for p in tiny_bundle.iterdir() if p.name != "manifest.json")):
        data = (tiny_bundle / name).read_bytes()
        for part in (data[: len(data) // 2], data):
            (target / name).write_bytes(part)
            assert not here.watcher.look()
    assert here.watcher.look()
    assert not here.watcher.look()
    assert here.digests == [read_bundle(tiny_bundle).digest]
    assert len(here.opened) == 1
    assert not caplog.records


def test_a_corrupt_bundle_is_refused_once_and_what_was_there_is_served_on(
    tmp_path: Path, tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    here = Watched(tmp_path)
    here.begin(tmp_path / "tiny")
    before = here.digests
    sheet = (tmp_path / "tiny" / "samples.png").read_bytes()
    (tmp_path / "tiny" / "samples.png").write_bytes(b"x")
    for _ in range(4):
        assert not here.watcher.look()
    assert here.digests == before
    assert here.watcher.refused == {tmp_path / "tiny"}
    (record,) = caplog.records
    assert re.fullmatch(
        rf"refused: \S+/tiny/samples\.png has 1 bytes .* \(bundle\.size-mismatch\) {before[0][:12]} is served on\.",
        record.getMessage(),
    )
    (tmp_path / "tiny" / "samples.png").write_bytes(sheet)
    for _ in range(2):
        assert not here.watcher.look()  # the same bundle: its session is the one that was open
    assert not here.watcher.refused
    assert len(here.opened) == 1
    shutil.rmtree(tmp_path / "tiny")
    assert [here.watcher.look() for _ in range(3)] == [False, True, False]
    assert here.digests == []


@pytest.mark.parametrize("error", [MemoryError("std::bad_alloc"), RuntimeError("CUDA out of memory")])
def test_a_bundle_that_cannot_be_opened_leaves_the_others(
    tmp_path: Path, tiny_bundle: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "a")
    here = Watched(tmp_path)
    here.begin(tmp_path / "a")
    before = here.digests

    def fail(path: Path) -> Served:
        raise error

    here.watcher._open = fail
    write_tiny_bundle(tmp_path / "b", seed=5)
    assert not any(here.watcher.look() for _ in range(3))
    assert here.digests == before
    (record,) = caplog.records
    assert type(error).__name__ in record.getMessage()


def test_two_copies_are_one_bundle_until_both_are_gone(tmp_path: Path, tiny_bundle: Path) -> None:
    place = tmp_path / "bundles"
    shutil.copytree(tiny_bundle, place / "a")
    here = Watched(place)
    here.begin(place / "a")
    shutil.copytree(tiny_bundle, place / "b")
    here.watcher.look()
    here.watcher.look()
    assert len(here.opened) == 1
    library = Library(here.watcher.bundles)
    assert len(library) == 1
    shutil.rmtree(place / "a")
    here.watcher.look()
    here.watcher.look()
    library.replace(here.watcher.bundles)
    assert len(library) == 1


def test_a_link_that_is_turned_is_a_bundle_replaced_at_once(tmp_path: Path) -> None:
    first, second = version(tmp_path / "v1", 1), version(tmp_path / "v2", 2, seed=1)
    link = tmp_path / "current"
    link.symlink_to(first)
    here = Watched(link)
    here.begin(first)
    link.unlink()
    link.symlink_to(second)
    assert not here.watcher.look()
    assert here.digests == [read_bundle(first).digest]
    assert here.watcher.look()
    assert here.digests == [read_bundle(second).digest]


# ------------------------------------------------------------------------------------------------- versions


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """Three versions of "tiny", the newest in the middle, and "plain"."""
    root = tmp_path_factory.mktemp("versions")
    paths = [version(root / f"v{day}", day, seed=day) for day in (2, 3, 1)]
    paths.insert(2, version(root / "plain", 9, name="plain"))
    return [open_bundle(path, Settings(device="cpu", batch=4)) for path in paths]


def test_a_name_means_its_newest_version_and_each_has_an_address(opened: list[Served]) -> None:
    library = Library(opened)
    two, three, plain, one = opened
    assert list(library) == [three, two, one, plain]
    for address, meant in (
        ("tiny", three),
        ("tiny@latest", three),
        (f"tiny@{one.info.digest[:8]}", one),
        (f"tiny@{two.info.digest}", two),
        (two.info.digest, two),
        ("plain@latest", plain),
    ):
        assert library.find(address) is meant, address
    assert [library.is_latest(bundle) for bundle in library] == [True, False, False, True]
    for strange in (f"tiny@{one.info.digest[:7]}", f"plain@{one.info.digest[:8]}", "tiny@", "tiny@newest", "@latest",
                    one.info.digest[:8], one.info.digest.upper()):  # fmt: skip
        with pytest.raises(UnknownBundleError, match="there is tiny, plain") as error:
            library.find(strange)
        assert error.value.code == "request.unknown-bundle"
    with pytest.raises(UnknownBundleError, match="2 bundles"):
        library.find(None)
    library.replace([one, two])
    assert library.find(None) is two


def test_of_one_checkpoint_the_larger_digest_is_newer(opened: list[Served], tmp_path: Path) -> None:
    twins = [open_bundle(version(tmp_path / str(i), 5, seed=i), Settings(device="cpu", batch=4)) for i in (1, 2)]
    newest = max(twins, key=lambda served: served.info.digest)
    assert Library(twins).find("tiny") is newest
    assert Library(reversed(twins)).find("tiny") is newest


def test_a_beginning_that_two_share_is_not_enough(opened: list[Served]) -> None:
    from dataclasses import replace

    twins = [replace(opened[0], info=replace(opened[0].info, digest="ab" * 16 + c * 32)) for c in "01"]
    library = Library(twins)
    with pytest.raises(UnknownBundleError, match="the beginning of 2 digests"):
        library.find("tiny@abababab")
    assert library.find("tiny@" + "ab" * 16 + "1") is twins[1]


# ------------------------------------------------------------------------------------------------- in the service


def test_an_old_bundle_answers_who_was_admitted_and_is_then_let_go(run: Callable[..., None], tmp_path: Path) -> None:
    place = tmp_path / "bundles"
    first, second = version(tmp_path / "v1", 1, seed=1), version(tmp_path / "v2", 2, seed=2)
    shutil.copytree(first, place / "hot")
    ask = {"counts": {"cat": 16}, "seed": 3, "format": "npy"}

    async def scenario(service: Harness) -> None:
        old = service.api.context.library.find("tiny")
        digest, dropped = old.info.digest, weakref.ref(old)
        del old
        admitted = asyncio.create_task(service.ask(ask))
        await service.until(lambda: bool(service.calls))
        put(second, place / "hot")
        await service.until(lambda: service.api.context.library.find("tiny").info.digest != digest)
        newer = await service.ask(ask | {"bundle": "tiny"})  # the gate is shut for the old one alone
        assert newer is not None
        assert newer.headers["augmint-bundle"] == read_bundle(second).digest
        assert dropped() is not None
        service.gate.set()
        reply = await admitted
        assert reply is not None
        assert reply.headers["augmint-bundle"] == digest
        local = Generator(first, device="cpu", threads=1).generate({"cat": 16}, seed=3)
        assert reply.body.endswith(local.images.tobytes())
        await service.until(lambda: dropped() is None)  # at once, without the collector's help
        shutil.rmtree(place / "hot")
        await service.until(lambda: len(service.api.context.library) == 0)
        ready = await service.ask(method="GET", path="/readyz")
        assert ready is not None
        assert ready.status == 200
        problem(await service.ask(ask), 404, "unknown-bundle")

        def served(digest: str) -> float | None:
            labels = {"bundle": "tiny", "digest": digest, "family": "tiny", "device": "cpu", "reproducibility": "exact"}
            return service.registry.get_sample_value("augmint_bundle_info", labels)

        assert [served(digest), served(read_bundle(second).digest)] == [0.0, 0.0]

    gc.disable()
    try:
        run(scenario, bundles=(place,), poll_s=0.05, threads=2)
    finally:
        gc.enable()


def test_a_look_that_fails_is_not_the_last_one(
    run: Callable[..., None], tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = tmp_path / "bundles"
    shutil.copytree(tiny_bundle, place / "tiny")
    caplog.set_level(logging.INFO, "augmint")

    async def scenario(service: Harness) -> None:
        with monkeypatch.context() as patched:
            looks: list[None] = []

            def fail(place: Path) -> list[Path]:
                looks.append(None)
                raise PermissionError(13, "Permission denied")

            patched.setattr("serving.watcher.scan", fail)
            await service.until(lambda: len(looks) > 2)
        write_tiny_bundle(place / "another", seed=3)
        await service.until(lambda: len(service.api.context.library) == 2)

    run(scenario, bundles=(place,), poll_s=0.03)
    assert [r.levelname for r in caplog.records if "cannot be looked at" in r.getMessage()] == ["ERROR"]


def test_nothing_is_followed_where_it_is_turned_off(tiny_bundle: Path) -> None:
    async def scenario() -> None:
        api = Api(
            Settings(bundles=(tiny_bundle,), device="cpu", batch=4, poll_s=0),
            Metrics(prometheus_client.CollectorRegistry()),
        )
        await api.start()
        assert api.ready
        assert len(asyncio.all_tasks()) == 1
        await api.stop()

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------- signatures


def test_only_signed_bundles_are_hot_loaded_where_keys_are_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice, _, public = make_key("alice", tmp_path / "keys")
    mallory = make_key("mallory", tmp_path / "keys")[0]
    place = tmp_path / "bundles"
    one, two = version(tmp_path / "v1", 1), version(tmp_path / "v2", 2, seed=1)
    sign(one, alice)
    shutil.copytree(one, place / "hot")
    here = Watched(place, trust=public)
    here.begin(place / "hot")
    first, second = read_bundle(one).digest, read_bundle(two).digest

    def look_twice() -> None:
        here.watcher.look()
        here.watcher.look()

    put(two, place / "hot")
    look_twice()
    assert "bundle.unsigned" in caplog.records[-1].getMessage()
    sign(place / "hot", mallory)
    look_twice()
    assert "bundle.untrusted" in caplog.records[-1].getMessage()
    assert here.digests == [first]
    assert here.opened == [place / "hot"]  # nothing unsigned gets as far as a session
    sign(place / "hot", alice)
    look_twice()
    assert here.digests == [second]
    assert not here.watcher.refused


def test_a_key_that_is_no_longer_trusted_takes_its_bundles_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = make_key("alice", tmp_path / "keys")[0], make_key("bob", tmp_path / "keys")[0]
    lines = [(tmp_path / "keys" / f"{name}.pub").read_text() for name in ("alice", "bob")]
    trust = tmp_path / "trusted.keys"
    trust.write_text("".join(lines))
    place = tmp_path / "bundles"
    for key, day in ((alice, 1), (bob, 2)):
        sign(version(place / key.name, day, seed=day), key)
    here = Watched(place, trust=trust)
    here.begin(place / "alice", place / "bob")
    hers, his = here.digests

    def look_twice() -> list[str]:
        here.watcher.look()
        here.watcher.look()
        return here.digests

    trust.write_text("no key\n")  # while it is being written, say: nothing changes
    assert look_twice() == [hers, his]
    trust.write_text(lines[1])
    assert look_twice() == [his]
    assert here.watcher.refused == {place / "alice"}
    trust.write_text("".join(lines))
    assert look_twice() == [hers, his]
    assert not here.watcher.refused
    assert "Traceback" not in caplog.text
