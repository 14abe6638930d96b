"""Quality over HTTP: the local generator's images and account from a real service whose limits are small."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from augmint import AsyncClient, Client, Generator, Samples
from augmint.errors import UnavailableError
from serving.engine import Engine, Lane
from serving.limits import RateLimit
from serving.metrics import Metrics
from tests.augmint.test_client import same
from tests.serving.conftest import Service, bentoml_serve
from tests.serving.test_service import assert_problem

BODY = {"counts": {"été 10": 5, "dog": 3}, "seed": 7, "offset": 9}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, judged_bundle: Path) -> Iterator[Service]:
    with bentoml_serve(
        tmp_path_factory.mktemp("judged"),
        AUGMINT_BUNDLES=str(judged_bundle),
        AUGMINT_MAX_IMAGES="12",
        AUGMINT_QUEUE_IMAGES="40",
        AUGMINT_THREADS="2",
    ) as running_service:
        running_service.wait_until_ready()
        yield running_service


@pytest.fixture(scope="module")
def local(judged_bundle: Path) -> Generator:
    return Generator(judged_bundle, device="cpu", threads=1)


def test_the_answer_accounts_for_what_was_made(judged: Service, local: Generator) -> None:
    reply = judged.generate({**BODY, "quality": "realism:0.25, labels"})
    assert reply.status == 200
    wanted = local.generate(BODY["counts"], seed=7, offset=9, quality="labels,realism:0.25")  # type: ignore[arg-type]
    with np.load(io.BytesIO(reply.body), allow_pickle=False) as npz:
        for name in ("images", "labels", "seeds", "indices"):
            assert np.array_equal(npz[name], getattr(wanted, name))
        assert npz["account"].tolist() == [
            [local.class_names.index(label), n, wanted.generated[label], *wanted.rejected[label]]
            for label, n in wanted.requested.items()
        ]
    totals = np.sum(list(wanted.rejected.values()), axis=0)
    assert reply.headers["augmint-quality"] == "labels,realism:0.25"
    assert (reply.headers["augmint-requested"], reply.headers["augmint-delivered"]) == ("8", "8")
    assert reply.headers["augmint-generated"] == str(8 + totals.sum())
    assert reply.headers["augmint-rejected"] == f"label={totals[0]}, realism={totals[1]}, copy={totals[2]}"
    plain = judged.generate(BODY)
    assert "augmint-generated" not in plain.headers
    with np.load(io.BytesIO(plain.body)) as npz:
        assert "account" not in npz.files


def test_the_tag_knows_the_quality(judged: Service) -> None:
    tags = set()
    for more in ({}, {"quality": "labels"}, {"quality": "labels", "candidates": 50}, {"quality": "copies"}):
        reply = judged.generate({**BODY, **more})
        tags.add(reply.headers["etag"])
        assert judged.generate({**BODY, **more}, If_None_Match=reply.headers["etag"]).status == 304
    assert len(tags) == 4
    same_wish = judged.generate({**BODY, "quality": " COPIES"}).headers["etag"]
    assert same_wish in tags


@pytest.mark.parametrize("form", ["npy", "zip"])
def test_other_formats_hold_the_same_images(judged: Service, local: Generator, form: str) -> None:
    reply = judged.generate({**BODY, "quality": "copies", "format": form})
    wanted = local.generate(BODY["counts"], seed=7, offset=9, quality="copies")  # type: ignore[arg-type]
    assert reply.headers["augmint-delivered"] == "8"
    if form == "npy":
        assert np.array_equal(np.load(io.BytesIO(reply.body)), wanted.images)


def test_what_cannot_be_judged_is_refused_with_what_can(judged: Service) -> None:
    problem = assert_problem(judged.generate({**BODY, "quality": "sharp"}), 422, "quality")
    assert "offers labels, realism, copies" in problem["detail"]
    assert_problem(judged.generate({**BODY, "quality": 3}), 422, "invalid")
    assert_problem(judged.generate({**BODY, "candidates": 0}), 422, "invalid")
    listed = judged.ask("GET", "/v1/bundles").json()["bundles"][0]["quality"]
    assert listed == {"labels": "", "realism": "", "copies": ""}


def test_a_bound_that_is_hit_is_an_answer_with_fewer(judged: Service) -> None:
    body = {"counts": {"cat": 0, "été 10": 1}, "seed": 7, "quality": "labels:0.999999999999999"}
    reply = judged.generate(body)
    assert reply.status == 200
    assert (reply.headers["augmint-delivered"], reply.headers["augmint-generated"]) == ("0", "84")
    fewer = judged.generate({**body, "candidates": 10})
    assert fewer.headers["augmint-generated"] == "10"
    assert_problem(judged.generate({**body, "format": "png"}), 422, "quality")
    assert judged.generate({**body, "quality": "copies", "format": "png"}).headers["content-type"] == "image/png"


@pytest.mark.parametrize("quality", ["labels,copies,realism:0.25", "labels:0.9999999"])
def test_near_and_far_give_the_same_however_small_the_limit(judged: Service, local: Generator, quality: str) -> None:
    counts = {"cat": 20, "été 10": 15, "dog": 31}
    url = f"http://127.0.0.1:{judged.port}"
    wanted = local.generate(counts, seed=3, quality=quality)
    with Client(url) as client:
        same(client.generate(counts, seed=3, quality=quality), wanted)
        parts = list(client.stream(counts, seed=3, quality=quality, chunk=5))
        same(Samples.concatenate(parts), wanted)

    async def ask() -> Samples:
        async with AsyncClient(url) as client:
            return await client.generate(counts, seed=3, quality=quality)

    same(asyncio.run(ask()), wanted)


def test_many_at_once_get_their_own(judged: Service, local: Generator) -> None:
    """More candidates than the queue takes: what is refused is asked for again, what was admitted is finished."""
    with Client(f"http://127.0.0.1:{judged.port}", retries=50) as client, ThreadPoolExecutor(8) as pool:
        ask: Any = lambda seed: client.generate({"cat": 6, "dog": 6}, seed=seed, quality="labels")  # noqa: E731
        for seed, samples in enumerate(pool.map(ask, range(16))):
            same(samples, local.generate({"cat": 6, "dog": 6}, seed=seed, quality="labels"))


def test_rejected_images_are_counted_by_reason(judged: Service) -> None:
    judged.generate({"counts": {"été 10": 4}, "seed": 1, "quality": "labels"})
    text = judged.ask("GET", "/metrics").body.decode()
    assert 'augmint_unfit_images_total{bundle="judged",reason="label"}' in text
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.unfit("digits", "copy", 3)
    assert b'augmint_unfit_images_total{bundle="digits",reason="copy"} 3.0' in metrics.exposition()[0]


def test_what_a_request_needed_besides_is_owed() -> None:
    rate = RateLimit(1.0, 10)
    rate.take("a", 30, now=0.0)
    rate.charge("a", 60)
    with pytest.raises(UnavailableError) as error:
        rate.take("a", 1, now=1.0)
    assert error.value.retry_after == pytest.approx(30.0)
    rate.take("b", 30, now=1.0)
    rate.charge("nobody", 5)


def test_the_engine_finishes_what_was_admitted(local: Generator) -> None:
    def render(labels: Any, seeds: Any, indices: Any, truncation: Any, edits: Any) -> Any:
        return np.zeros((len(labels), 8, 8, 1), np.uint8)

    engine = Engine(threads=1, queue_images=4)
    lane = Lane("tiny", render, (8, 8, 1))
    request = local.request({"cat": 10}, seed=1)
    with pytest.raises(UnavailableError):
        engine.submit(lane, request)
    assert len(engine.wait(engine.submit(lane, request, admitted=True), timeout=10)) == 10
    engine.stop_admitting()
    assert len(engine.wait(engine.submit(lane, request, admitted=True), timeout=10)) == 10
    engine.close()
    with pytest.raises(UnavailableError):
        engine.submit(lane, request, admitted=True)
