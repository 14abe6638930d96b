"""The real service over HTTP: bytes are the local generator's, errors are problem+json, and it stays up meanwhile."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
import re
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augmint import Generator
from augmint.data import load_data
from augmint.errors import AugmintError
from augmint.images import read_marks
from augmint.samples import Samples
from augmint.sampling import write_samples
from tests.serving.conftest import Reply, Service


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Generator:
    return Generator(tiny_bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def plain(tiny_bundle_unconditional: Path) -> Generator:
    return Generator(tiny_bundle_unconditional, device="cpu", threads=1)


def assert_whole(reply: Reply) -> None:
    digest = base64.b64encode(hashlib.sha256(reply.body).digest()).decode()
    assert reply.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert reply.headers["augmint-delivered"] == reply.headers["augmint-requested"]
    assert reply.headers["x-request-id"]


def assert_problem(reply: Reply, status: int, code: str) -> dict[str, Any]:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:augmint:problem:{code}"
    assert problem["title"]
    assert problem["detail"].endswith(".")
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert not re.search(r'Traceback|File "|/tmp/|\.py', problem["detail"])
    return dict(problem)


def images_of(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    assert_whole(reply)
    if reply.headers["content-type"] == "application/x-npy":
        return np.load(io.BytesIO(reply.body))
    return np.load(io.BytesIO(reply.body))["images"]


# ------------------------------------------------------------------------------------------------- answers


def test_npz_holds_images_and_addresses(service: Service, tiny: Generator) -> None:
    counts = {"été 10": 3, "cat": 0, "dog": 70}
    reply = service.generate({"bundle": "tiny", "counts": counts, "seed": 2**64 - 1, "offset": 5, "truncation": 0.7})
    assert reply.status == 200
    assert_whole(reply)
    assert reply.headers["content-type"] == "application/x-npz"
    assert reply.headers["augmint-seed"] == str(2**64 - 1)
    assert reply.headers["augmint-bundle"] == tiny.digest
    assert reply.headers["augmint-reproducibility"] == "exact"
    local = tiny.generate(counts, seed=2**64 - 1, offset=5, truncation=0.7)
    with np.load(io.BytesIO(reply.body), allow_pickle=False) as npz:
        assert set(npz.files) == {"images", "labels", "class_names", "seeds", "indices"}
        for name in ("images", "labels", "seeds", "indices"):
            found, wanted = npz[name], getattr(local, name)
            assert found.dtype == wanted.dtype
            assert np.array_equal(found, wanted)
        assert tuple(npz["class_names"]) == ("cat", "dog", "été 10")


def test_the_unconditional_bundle_takes_a_number(service: Service, plain: Generator) -> None:
    reply = service.generate({"bundle": "plain", "counts": 9, "seed": "77", "format": "npy"})
    assert np.array_equal(images_of(reply), plain.generate(9, seed=77).images)
    assert reply.headers["content-type"] == "application/x-npy"


def test_a_bundle_can_be_named_by_its_digest(service: Service, plain: Generator) -> None:
    reply = service.generate({"bundle": plain.digest, "counts": 2, "seed": 1})
    assert np.array_equal(images_of(reply), plain.generate(2, seed=1).images)


def test_a_seed_is_chosen_and_returned(service: Service, tiny: Generator) -> None:
    replies = [service.generate({"bundle": "tiny", "counts": {"cat": 4}}) for _ in range(2)]
    seeds = [int(reply.headers["augmint-seed"]) for reply in replies]
    assert seeds[0] != seeds[1]
    for reply, seed in zip(replies, seeds, strict=True):
        assert "etag" not in reply.headers
        assert reply.headers["cache-control"] == "no-store"
        assert np.array_equal(images_of(reply), tiny.generate({"cat": 4}, seed=seed).images)


def test_the_zip_reads_back_as_a_data_set(service: Service, tiny: Generator, tmp_path: Path) -> None:
    reply = service.generate({"bundle": "tiny", "counts": {"dog": 3, "été 10": 2}, "seed": 4}, Accept="application/zip")
    assert reply.status == 200
    assert_whole(reply)
    local = tiny.generate({"dog": 3, "été 10": 2}, seed=4)
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("metadata.csv").decode())))
        assert [row["file_name"] for row in rows] == archive.namelist()[:-1]
        write_samples(tiny, {"dog": 3, "été 10": 2}, str(tmp_path / "local"), seed=4)
        for name in archive.namelist():  # the same files as `augmint sample` writes
            assert archive.read(name) == (tmp_path / "local" / name).read_bytes()
        for row, image, label in zip(rows, local.images, local.label_names, strict=True):
            data = archive.read(row["file_name"])
            assert np.array_equal(np.array(Image.open(io.BytesIO(data)))[..., None], image)
            assert row["label"] == label
            assert row["seed"] == "4"
            assert row["synthetic"] == "true"
            marks = read_marks(data)
            assert marks is not None
            assert marks["label"] == label
            assert marks["bundle"] == tiny.digest == row["bundle"]
            assert str(marks["index"]) == row["index"]
        archive.extractall(tmp_path / "far")
    data_set = load_data(tmp_path / "far")
    assert data_set.class_names == ("dog", "été 10")
    assert len(data_set.labels) == 5


def test_one_png(service: Service, plain: Generator) -> None:
    body = {"bundle": "plain", "counts": 1, "seed": 9, "offset": 3}
    reply = service.generate(body, Accept="text/html, image/png;q=0.8, application/zip;q=0.5")
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(reply.body))), plain.generate(1, seed=9, offset=3).images[0])
    marks = read_marks(reply.body)
    assert marks is not None
    assert marks["index"] == 3
    assert service.generate({**body, "counts": 2}, Accept="image/png, */*;q=0.1").headers["content-type"] != "image/png"


@pytest.mark.parametrize("form", ["npz", "npy", "zip", "png", "webp"])
def test_the_same_request_gives_the_same_bytes(service: Service, form: str) -> None:
    body = {"bundle": "tiny", "counts": {"cat": 1}, "seed": 3, "format": form}
    first, second = service.generate(body), service.generate(body)
    assert first.status == 200
    assert first.body == second.body
    assert first.headers["etag"] == second.headers["etag"]


def test_what_the_client_has_is_not_made_again(service: Service) -> None:
    body = {"bundle": "tiny", "counts": {"cat": 1}, "seed": 3}
    tag = service.generate(body).headers["etag"]
    again = service.generate(body, If_None_Match=f'"other", W/{tag}')
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == tag
    assert service.generate(body, If_None_Match="*").status == 304
    for other in ({"seed": 4}, {"offset": 1}, {"truncation": 0.5}, {"format": "npy"}, {"counts": {"dog": 1}}):
        reply = service.generate({**body, **other}, If_None_Match=tag)
        assert reply.status == 200, other
        assert reply.headers["etag"] != tag


# ------------------------------------------------------------------------------------------------- many at once


def test_concurrent_requests_get_their_own_bytes(service: Service, tiny: Generator, plain: Generator) -> None:
    """32 at once, good and bad, of both bundles: each gets exactly what the local generator makes, or its own error."""
    chooser = random.Random(5)

    def one(number: int) -> None:
        kind = number % 8
        seed, offset = chooser.randrange(2**64), chooser.randrange(2**40)
        if kind == 0:
            assert_problem(service.generate({"bundle": "tiny", "counts": {"cow": 1}}), 422, "unknown-label")
        elif kind == 1:
            assert_problem(service.generate(b"{"), 400, "malformed")
        elif kind == 2:
            assert_problem(service.generate({"bundle": "plain", "counts": 3001}), 413, "too-many-images")
        elif kind in (3, 4):
            n = chooser.choice([1, 7, 300])
            body = {"bundle": "plain", "counts": n, "seed": str(seed), "offset": offset, "format": "npy"}
            assert np.array_equal(images_of(service.generate(body)), plain.generate(n, seed=seed, offset=offset).images)
        else:
            counts = {"dog": chooser.choice([1, 2, 200]), "cat": chooser.randrange(3)}
            body = {"bundle": "tiny", "counts": counts, "seed": str(seed), "offset": offset}
            assert np.array_equal(
                images_of(service.generate(body)), tiny.generate(counts, seed=seed, offset=offset).images
            )

    with ThreadPoolExecutor(32) as pool:
        for done in [pool.submit(one, number) for number in range(160)]:
            done.result()


# ------------------------------------------------------------------------------------------------- refusals

TINY = {"bundle": "tiny", "counts": {"cat": 1}}


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"", 400, "malformed", "not valid JSON"),
        (b"{", 400, "malformed", "line 1, column 2"),
        (b"\xff\xfe", 400, "malformed", "UTF-8"),
        (b'{"counts": {"cat": 1, "cat": 2}}', 400, "malformed", "twice"),
        (b'{"counts": 1, "truncation": NaN}', 400, "malformed", "NaN"),
        (b'{"counts": 1, "truncation": Infinity}', 400, "malformed", "Infinity"),
        (b"[" * 4000, 400, "malformed", "nested"),
        (b'{"counts": ' + b"9" * 4000 + b"}", 422, "invalid", ""),
        (b"[]", 422, "invalid", "JSON object"),
        (b"null", 422, "invalid", "JSON object"),
        ({}, 422, "invalid", "counts is missing"),
        ({**TINY, "colour": 1}, 422, "invalid", "'colour' is not known"),
        ({**TINY, "seed": -1}, 422, "invalid", "seed must be"),
        ({**TINY, "seed": 2**64}, 422, "invalid", "seed must be"),
        ({**TINY, "seed": str(2**64)}, 422, "invalid", "seed must be"),
        ({**TINY, "seed": 1.0}, 422, "invalid", "seed must be"),
        ({**TINY, "seed": True}, 422, "invalid", "seed must be"),
        ({**TINY, "seed": "0x10"}, 422, "invalid", "seed must be"),
        ({**TINY, "offset": 2**64 - 1}, 422, "invalid", "offset"),
        ({**TINY, "truncation": 0}, 422, "invalid", "truncation"),
        ({**TINY, "truncation": 1.5}, 422, "invalid", "truncation"),
        ({**TINY, "truncation": "1"}, 422, "invalid", "truncation"),
        ({**TINY, "format": "tiff"}, 422, "invalid", "format must be"),
        ({**TINY, "counts": {"cat": -1}}, 422, "invalid", "counts must be"),
        ({**TINY, "counts": {"cat": 1.5}}, 422, "invalid", "counts must be"),
        ({**TINY, "counts": {}}, 422, "invalid", "nothing was asked for"),
        ({**TINY, "counts": {"cat": 0}}, 422, "invalid", "nothing was asked for"),
        ({**TINY, "counts": 3}, 422, "invalid", "by label"),
        ({**TINY, "counts": {"cat": 2}, "format": "png"}, 422, "invalid", "one image"),
        ({**TINY, "counts": {"cat": 2}, "format": "webp"}, 422, "invalid", "one image"),
        ({"bundle": "plain", "counts": {"cat": 1}}, 422, "invalid", "unconditional"),
        ({"counts": 1}, 422, "invalid", "tiny, plain"),
        ({"bundle": "nope", "counts": 1}, 404, "unknown-bundle", "tiny, plain"),
        ({"bundle": "../x", "counts": 1}, 404, "unknown-bundle", "no bundle"),
        ({**TINY, "counts": {"cow": 1}}, 422, "unknown-label", "cat, dog, été 10"),
        ({**TINY, "counts": {"\ud800": 1}}, 422, "unknown-label", "cat"),
        ({**TINY, "counts": {"cat": 2999, "dog": 2}}, 413, "too-many-images", "3000"),
        ({**TINY, "counts": {"cat": 2**63}}, 413, "too-many-images", "3000"),
        ({**TINY, "counts": {"cat": 10**40}}, 422, "invalid", "2^64"),
        (b'{"counts": 1}' + b" " * 4096, 413, "body-too-large", "4096"),
    ],
)
def test_refusals(service: Service, body: Any, status: int, code: str, says: str) -> None:
    problem = assert_problem(service.generate(body), status, code)
    assert says in problem["detail"]
    assert len(problem["detail"]) < 400
    if code == "unknown-label":
        assert problem["labels"] == ["cat", "dog", "été 10"]
    if code == "unknown-bundle":
        assert problem["bundles"] == ["tiny", "plain"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", "/nope", {}, 404, "not-found"),
        ("GET", "/v1/bundles/nope", {}, 404, "unknown-bundle"),
        ("GET", "/v1/bundles/tiny/", {}, 404, "not-found"),
        ("GET", "/v1/generate", {}, 405, "method-not-allowed"),
        ("DELETE", "/v1/bundles/tiny", {}, 405, "method-not-allowed"),
        ("POST", "/", {}, 405, "method-not-allowed"),
        ("POST", "/v1/generate", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported-media"),
        ("POST", "/v1/generate", {"Content-Type": "text/plain"}, 415, "unsupported-media"),
    ],
)
def test_addresses_methods_and_media(
    service: Service, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    reply = service.ask(method, path, b"{}" if method == "POST" else None, headers)
    assert_problem(reply, status, code)
    if status == 405:
        assert reply.headers["allow"]


def test_no_format_is_acceptable(service: Service) -> None:
    problem = assert_problem(service.generate(TINY, Accept="text/html, application/zip;q=0"), 406, "not-acceptable")
    assert "application/x-npz" in problem["detail"]
    assert service.generate({**TINY, "format": "npy"}, Accept="text/html").status == 200


def test_a_long_body_is_refused_before_it_is_read(service: Service) -> None:
    for head in ("Content-Length: 1000000000", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(
                "POST /v1/generate HTTP/1.1\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\n{head}\r\n\r\n".encode()
            )
            if "chunked" in head:
                for _ in range(3):
                    connection.sendall(b"800\r\n" + b" " * 0x800 + b"\r\n")
            answer = b""
            while b"body-too-large" not in answer:
                piece = connection.recv(65536)
                assert piece, answer
                answer += piece
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()


# ------------------------------------------------------------------------------------------------- the rest


def test_bundles(service: Service, tiny: Generator) -> None:
    listing = service.ask("GET", "/v1/bundles")
    document = listing.json()
    assert [bundle["name"] for bundle in document["bundles"]] == ["tiny", "plain"]
    first = document["bundles"][0]
    assert first["digest"] == tiny.digest
    assert first["class_names"] == ["cat", "dog", "été 10"]
    assert first["image_shape"] == [8, 8, 1]
    assert first["device"] == "cpu"
    assert document["limits"]["images"] == 3000
    again = service.ask("GET", "/v1/bundles", headers={"If-None-Match": listing.headers["etag"]})
    assert again.status == 304
    detail = service.ask("GET", "/v1/bundles/tiny").json()
    assert detail.items() >= first.items()
    assert detail["train_counts"] == {"cat": 0, "dog": 0, "été 10": 0}
    sheet = service.ask("GET", "/v1/bundles/tiny/samples.png")
    assert sheet.headers["content-type"] == "image/png"
    assert sheet.body == tiny.files.content["samples.png"]
    head = service.ask("HEAD", "/v1/bundles/tiny/samples.png")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(sheet.body))


def test_request_ids(service: Service) -> None:
    assert service.ask("GET", "/livez", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {
        service.ask("GET", "/livez", headers={"X-Request-ID": bad}).headers["x-request-id"]
        for bad in ("a b", "x" * 129, "")
    }
    assert len(made) == 3
    assert all(re.fullmatch(r"[0-9a-f-]{8,64}", one) for one in made)


def test_the_log_names_request_and_trace(service: Service) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    service.generate(TINY, X_Request_ID="seen-in-log", traceparent=trace)
    service.ask("GET", "/nope%0aforged", headers={"X-Request-ID": "second"})
    for _ in range(50):
        if "id=second" in (log := service.log.read_text()):
            break
        time.sleep(0.05)
    assert re.search(rf"access 127\.0\.0\.1 POST /v1/generate 200 images=1 .* id=seen-in-log trace={trace}\n", log)
    assert re.search(r"GET /nope%0aforged 404 .* id=second trace=-\n", log)


def test_probes_and_bentoml_s_own_pages(service: Service) -> None:
    for path in ("/livez", "/healthz", "/readyz"):
        assert service.ask("GET", path).status == 200
    assert service.ask("GET", "/docs.json").json()["info"]["title"] == "AugmintService"


def test_metrics(service: Service) -> None:
    def read() -> dict[str, float]:
        reply = service.ask("GET", "/metrics")
        assert reply.headers["content-type"].startswith("text/plain; version=")
        lines = [line.rsplit(" ", 1) for line in reply.body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    before = read()
    service.generate({"bundle": "plain", "counts": 100, "seed": 1})
    service.generate({"bundle": "plain", "counts": {"x": 1}})
    after = read()

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grew('augmint_images_generated_total{bundle="plain"}') == 100
    assert grew('augmint_batch_images_sum{bundle="plain"}') == 100
    assert grew('augmint_inference_seconds_count{bundle="plain"}') >= 1
    assert grew("augmint_queue_wait_seconds_count") == 1
    assert grew('augmint_rejections_total{reason="invalid"}') == 1
    assert grew('augmint_http_answers_total{route="/v1/generate",status="200"}') == 1
    assert after["augmint_queue_images"] == 0
    assert after["augmint_ready_workers"] == 1
    assert any(name.startswith("augmint_bundle_info{") and 'device="cpu"' in name for name in after)
    assert not any("/nope" in name for name in after)  # addresses that are not there are not counted one by one


def test_the_page_is_self_contained(service: Service) -> None:
    reply = service.ask("GET", "/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe" not in policy
    text = reply.body.decode()
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", text)
    for tag in ("script", "style"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() in policy


def test_local_and_remote_are_one_interface(service: Service, tiny: Generator) -> None:
    augmint_client = pytest.importorskip("augmint.client")
    with augmint_client.Client(f"http://127.0.0.1:{service.port}", bundle="tiny") as client:
        assert client.info() == tiny.info()
        near: Samples = tiny.generate({"dog": 5, "cat": 2}, seed=8)
        far: Samples = client.generate({"dog": 5, "cat": 2}, seed=8)
        assert np.array_equal(near.images, far.images)
        assert near.label_names == far.label_names
        with pytest.raises(AugmintError, match="cat, dog"):
            client.generate({"cow": 1})


def test_the_documents_agree_with_the_service(service: Service) -> None:
    """Every path of the OpenAPI document answers, and with a status that it names."""
    document = service.ask("GET", "/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            body = json.dumps(TINY).encode() if method == "post" else None
            reply = service.ask(
                method.upper(),
                path.replace("{bundle}", "tiny").replace("{model}", "tiny"),
                body,
                {"Content-Type": "application/json"},
            )
            assert str(reply.status) in operation["responses"], path
            content = operation["responses"][str(reply.status)]["content"]  # the tiny bundle has no report, say
            assert reply.headers["content-type"].partition(";")[0] in content


def test_bentomls_own_addresses_have_the_same_door(service: Service) -> None:
    for path in ("/docs.json", "/schema.json"):
        assert service.ask("GET", path).headers["x-request-id"]
        assert service.ask("HEAD", path).body == b""
        assert_problem(service.ask("POST", path, b""), 405, "method-not-allowed")
        assert_problem(service.ask("GET", path, headers={"Host": "example.org"}), 421, "misdirected")


def test_the_clients_time_limit_is_a_number_or_malformed(service: Service) -> None:
    for text in ("soon", "-1", "1.5", "", "1e3", "9" * 10):
        for method, path in (("GET", "/livez"), ("POST", "/v1/generate")):
            problem = assert_problem(service.ask(method, path, b"{}", {"X-Request-Timeout-Ms": text}), 400, "malformed")
            assert "X-Request-Timeout-Ms" in problem["detail"]
    late = service.generate({"bundle": "plain", "counts": 3000, "seed": 1}, X_Request_Timeout_Ms="0")
    assert_problem(late, 504, "deadline")
    assert service.generate({"bundle": "plain", "counts": 1, "seed": 1}, X_Request_Timeout_Ms="30000").status == 200
