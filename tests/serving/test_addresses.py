"""Images and shards by their addresses, and plans: the same bytes as the local Generator's, and cacheable."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from augmint import Generator
from augmint.errors import RequestError
from augmint.images import read_marks
from augmint.samples import MAX_SEED
from serving.shards import Cycle, shard_request
from tests.serving.conftest import Service
from tests.serving.test_api import Harness
from tests.serving.test_api import run as run  # the fixtures
from tests.serving.test_service import plain as plain
from tests.serving.test_service import tiny as tiny
from tests.tinybundle import write_tiny_bundle


def array(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


# ---------------------------------------------------------------------------------------------- one image


@pytest.mark.parametrize("label", ["cat", "été 10"])
def test_an_image_is_its_address(service: Service, tiny: Generator, label: str) -> None:
    quoted = label.replace("é", "%C3%A9").replace(" ", "%20")
    reply = service.ask("GET", f"/v1/bundles/tiny/images/{quoted}/7/1000000000000.png")
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["cache-control"] == "public, no-cache"
    expected = tiny.generate({label: 1}, seed=7, offset=10**12).images[0]
    assert np.array_equal(array(reply.body), expected)
    marks = read_marks(reply.body)
    assert marks is not None
    assert (marks["label"], marks["seed"], marks["index"]) == (label, 7, 10**12)
    npy = service.ask("GET", f"/v1/bundles/tiny/images/{quoted}/7/1000000000000.npy")
    assert np.array_equal(np.load(io.BytesIO(npy.body))[0], expected)
    webp = service.ask("GET", f"/v1/bundles/tiny/images/{quoted}/7/1000000000000.webp")
    assert webp.headers["content-type"] == "image/webp"
    assert np.array_equal(array(webp.body), np.broadcast_to(expected, (*expected.shape[:2], 3)))
    assert read_marks(webp.body) == marks
    assert len({reply.headers["etag"] for reply in (reply, npy, webp)}) == 3


def test_by_digest_it_is_cacheable_for_ever(service: Service, tiny: Generator) -> None:
    path = f"/v1/bundles/{tiny.info().digest}/images/dog/0/3.png?truncation=0.5"
    reply = service.ask("GET", path)
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert np.array_equal(array(reply.body), tiny.generate({"dog": 1}, seed=0, offset=3, truncation=0.5).images[0])
    again = service.ask("GET", path, headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert service.ask("HEAD", path).headers["etag"] == reply.headers["etag"]
    other = service.ask("GET", path.replace("3.png", "4.png"), headers={"If-None-Match": reply.headers["etag"]})
    assert other.status == 200


def test_an_unconditional_bundle_has_no_label_in_its_addresses(service: Service, plain: Generator) -> None:
    reply = service.ask("GET", "/v1/bundles/plain/images/5/9.png")
    assert np.array_equal(array(reply.body), plain.generate(1, seed=5, offset=9).images[0])


def test_a_label_with_slashes_has_addresses_too(run: Callable[..., None], tmp_path: Path) -> None:
    labels = ("n/a", "a/1/2.png", "/", "cat")
    path = write_tiny_bundle(tmp_path / "odd", class_names=labels)
    local = Generator(path, device="cpu", threads=1)

    async def scenario(service: Harness) -> None:
        service.gate.set()
        for label in labels:
            # As a server hands it over: decoded.
            reply = await service.ask(method="GET", path=f"/v1/bundles/odd/images/{label}/7/3.png")
            assert reply is not None
            assert reply.status == 200, reply.body
            assert np.array_equal(array(reply.body), local.generate({label: 1}, seed=7, offset=3).images[0])

    run(scenario, bundles=(path,))


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/bundles/none/images/cat/0/0.png", 404, "unknown-bundle"),
        ("/v1/bundles/tiny/images/bird/0/0.png", 422, "unknown-label"),
        ("/v1/bundles/tiny/images/0/0.png", 422, "invalid"),
        ("/v1/bundles/plain/images/cat/0/0.png", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.gif", 404, "not-found"),
        ("/v1/bundles/tiny/images/cat/x/0.png", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/-1.png", 422, "invalid"),
        (f"/v1/bundles/tiny/images/cat/{MAX_SEED + 1}/0.png", 422, "invalid"),
        (f"/v1/bundles/tiny/images/cat/0/{MAX_SEED}.png", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/" + "9" * 5000 + ".png", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.png?truncation=2", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.png?truncation=nan", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.png?x=1", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.png?edit=slant", 422, "invalid"),
        ("/v1/bundles/tiny/images/cat/0/0.png?edit=nothing:1", 422, "edit"),
        ("/v1/bundles/tiny/shards/0.tar?per_shard=0", 422, "invalid"),
        ("/v1/bundles/tiny/shards/0.tar?per_shard=3001", 413, "too-many-images"),
        ("/v1/bundles/tiny/shards/1000000000.tar", 422, "invalid"),
        ("/v1/bundles/tiny/shards/0.tar?labels=cat:1,bird:1", 422, "unknown-label"),
        ("/v1/bundles/tiny/shards/0.tar?labels=cat:0", 422, "invalid"),
        ("/v1/bundles/tiny/shards/0.tar?seed=1&seed=2", 422, "invalid"),
    ],
)
def test_addresses_that_are_none(service: Service, path: str, status: int, code: str) -> None:
    reply = service.ask("GET", path)
    assert (reply.status, reply.json()["code"]) == (status, code)


# ---------------------------------------------------------------------------------------------- shards


weights = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), min_size=1).filter(lambda w: sum(w.values()))


@given(weights, st.integers(1, 40), st.integers(0, 50), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_shards_cut_one_endless_row(wanted: dict[str, int], per_shard: int, k: int, seed: int) -> None:
    """Whatever the cut: position p has one address, no address comes twice, and labels come in their shares."""
    cycle = Cycle.parse(",".join(f"{name}:{n}" for name, n in wanted.items()), ("a", "b", "c"))

    def addresses(shard: int, rows: int) -> list[tuple[int, int]]:
        request, order = shard_request(cycle, shard, rows, ("a", "b", "c"), seed=seed, truncation=1.0)
        labels, indices = request.addresses()
        assert sorted(order) == list(range(rows))
        return [(int(labels[row]), int(indices[row])) for row in order]

    whole = [address for shard in range(k + 1) for address in addresses(shard, per_shard)]
    assert whole == addresses(0, per_shard * (k + 1))
    assert len(set(whole)) == len(whole)
    total, found = sum(wanted.values()), Counter(label for label, _ in whole)
    for name, weight in wanted.items():
        assert abs(found["abc".index(name)] - Fraction(weight * len(whole), total)) <= len(wanted)


@pytest.mark.parametrize("text", ["", "a", "a:", "a:1,a:2", "a:-1", "a:1.5", "a:9999999999", "a:10001", "a:0,b:0"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(RequestError):
        Cycle.parse(text, ("a", "b"))


def test_a_label_may_have_a_colon() -> None:
    assert Cycle.parse("a:b:2", ()).names == ("a:b",)


def test_a_shard_holds_its_addresses(service: Service, tiny: Generator) -> None:
    path = "/v1/bundles/tiny/shards/000002.tar?per_shard=4&seed=9&labels=cat:2,dog:1"
    reply = service.ask("GET", path)
    assert reply.headers["content-type"] == "application/x-tar"
    assert service.ask("GET", path).body == reply.body
    assert service.ask("GET", path.replace("000002", "2")).headers["etag"] == reply.headers["etag"]
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as archive:
        names = archive.getnames()
        files = {name: archive.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert names == [f"000000002-{i:06d}.{end}" for i in range(4) for end in ("png", "cls")]
    # Positions 8 … 11 of cat, dog, cat, cat, dog, cat …: the sixth cat is number 5.
    classes = tiny.info().class_names
    for i in range(4):
        png = files[f"000000002-{i:06d}.png"]
        marks = read_marks(png)
        assert marks is not None
        assert classes[int(files[f"000000002-{i:06d}.cls"])] == marks["label"]
        expected = tiny.generate({marks["label"]: 1}, seed=9, offset=marks["index"]).images[0]
        assert np.array_equal(array(png), expected)
    assert service.ask("GET", path, headers={"If-None-Match": reply.headers["etag"]}).status == 304


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_webdataset_reads_shards_unmodified(service: Service, tiny: Generator, tmp_path: Path) -> None:
    import webdataset

    url = f"http://127.0.0.1:{service.port}/v1/bundles/tiny/shards/{{000000..000002}}.tar?per_shard=5"
    data = webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    rows = list(data)
    assert len(rows) == 15
    counts = Counter(label for _, label in rows)
    assert counts == {0: 5, 1: 5, 2: 5}
    expected = tiny.generate(dict.fromkeys(tiny.info().class_names, 5), seed=0)
    first = [image for image, label in rows if label == 1]
    for image, made in zip(first, expected.images[5:10], strict=True):
        assert np.array_equal(image, np.broadcast_to(made, image.shape))


# ---------------------------------------------------------------------------------------------- plans


def test_a_plan(service: Service, tiny: Generator) -> None:
    service.generate({"bundle": "tiny", "counts": {"cat": 50}, "seed": 1})
    body = {"bundle": "tiny", "counts": {"cat": 2000, "dog": 60, "été 10": 5}}
    reply = service.ask("POST", "/v1/plan", body)
    assert reply.status == 200
    document = reply.json()
    assert document["counts"] == {"cat": 0, "dog": 1940, "été 10": 1995}
    assert document["images"] == 3935
    assert document["bytes"] == 3935 * int(np.prod(tiny.info().image_shape))
    assert document["requests"] == 2
    assert document["seconds"] > 0
    totals = service.ask("POST", "/v1/plan", {**body, "strategy": {"dog": 100}}).json()
    assert totals["counts"] == {"cat": 0, "dog": 40, "été 10": 0}
    for wrong, code in (
        ({"strategy": "most"}, "invalid"),
        ({"strategy": {"dog": 1}}, "invalid"),
        ({"counts": {"bird": 3, "cat": 5}}, "unknown-label"),
        ({"counts": {}}, "invalid"),
    ):
        refused = service.ask("POST", "/v1/plan", {**body, **wrong})
        assert (refused.status, refused.json()["code"]) == (422, code), refused.body
