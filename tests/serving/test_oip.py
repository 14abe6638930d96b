"""The Open Inference Protocol: an unmodified client of Triton's gets the local Generator's bytes."""

from __future__ import annotations

import asyncio
import http.client
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from augmint import Generator
from augmint.errors import AugmintError, RequestError
from augmint.samples import BundleInfo
from serving import oip
from tests.serving.conftest import Service
from tests.serving.test_api import Harness
from tests.serving.test_api import run as run  # the fixtures
from tests.serving.test_service import plain as plain
from tests.serving.test_service import tiny as tiny

Json = dict[str, Any]
SEEDS = [7, 2**64 - 1, 7, 7, 0]
INDICES = [3, 0, 2**64 - 2, 4, 10**12]
LABELS = ["cat", "été 10", "dog", "cat", "cat"]
SHARES = [1.0, 0.5, 1.0, 1.0, 0.25]


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


def tensor(name: str, kind: str, values: list[Any], *, binary: bool, flat: bool = False) -> triton.InferInput:
    dtype = {"UINT64": np.uint64, "INT64": np.int64, "FP64": np.float64, "FP32": np.float32, "BYTES": np.object_}[kind]
    array = np.array(values, dtype=dtype)
    array = array if flat else array[:, None]
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def expected(generator: Generator) -> np.ndarray:
    rows = zip(SEEDS, INDICES, LABELS, SHARES, strict=True)
    return np.concatenate(
        [generator.generate({label: 1}, seed=s, offset=i, truncation=t).images for s, i, label, t in rows]
    )


# ---------------------------------------------------------------------------------------------- Triton's client


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("answer", ["left out", "binary", "json"])
@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_generators_bytes(
    client: triton.InferenceServerClient, tiny: Generator, binary: bool, answer: str, numbers: bool
) -> None:
    names = tiny.info().class_names
    label = [names.index(label) for label in LABELS] if numbers else LABELS
    inputs = [
        tensor("label", "INT64" if numbers else "BYTES", label, binary=binary),
        tensor("seed", "UINT64", SEEDS, binary=binary, flat=numbers),
        tensor("truncation", "FP32" if numbers else "FP64", SHARES, binary=not binary),
        tensor("index", "UINT64", INDICES, binary=binary),
    ]
    outputs = None if answer == "left out" else [triton.InferRequestedOutput("image", binary_data=answer == "binary")]
    result = client.infer("tiny", inputs, outputs=outputs, request_id="é 1")
    images = result.as_numpy("image")
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected(tiny))
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("é 1", tiny.info().digest)
    assert ("data" in response["outputs"][0]) == (answer == "json")


def test_tritonclient_asks_an_unconditional_bundle_without_labels(
    client: triton.InferenceServerClient, plain: Generator
) -> None:
    rows = list(range(40))
    inputs = [tensor("seed", "UINT64", [9] * 40, binary=True), tensor("index", "UINT64", rows, binary=True)]
    found = client.infer("plain", inputs, model_version=plain.info().digest).as_numpy("image")
    assert np.array_equal(found, plain.generate(40, seed=9).images)


def test_tritonclient_asks_for_several_at_once(service: Service, tiny: Generator) -> None:
    inputs = [
        tensor("seed", "UINT64", SEEDS, binary=True),
        tensor("index", "UINT64", INDICES, binary=True),
        tensor("label", "BYTES", LABELS, binary=True),
        tensor("truncation", "FP64", SHARES, binary=True),
    ]
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=4) as client:
        asked = [client.async_infer("tiny", inputs) for _ in range(8)]
        for one_of_them in asked:
            assert np.array_equal(one_of_them.get_result().as_numpy("image"), expected(tiny))


def test_tritonclient_sees_the_models(client: triton.InferenceServerClient, tiny: Generator) -> None:
    info = tiny.info()
    assert client.is_server_live()
    assert client.is_server_ready()
    known = (("tiny", ""), (info.digest, ""), ("tiny", info.digest), ("tiny", info.digest[:8]), ("tiny", "latest"))
    for model, version in known:
        assert client.is_model_ready(model, version)
        assert client.get_model_metadata(model, version)["versions"] == [info.digest]
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("plain", info.digest)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_configuration"]
    metadata, config = client.get_model_metadata("tiny"), client.get_model_config("tiny")
    kinds = {"seed": "UINT64", "index": "UINT64", "label": "BYTES", "truncation": "FP64"}
    assert {one["name"]: one["datatype"] for one in metadata["inputs"]} == kinds
    assert metadata["outputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, *info.image_shape]}]
    assert config["max_batch_size"] == 3000
    assert [one["name"] for one in config["input"] if one["optional"]] == ["truncation"]
    assert config["output"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": list(info.image_shape)}]
    listed = {(one["name"], one["version"], one["state"]) for one in client.get_model_repository_index()}
    assert ("tiny", info.digest, "READY") in listed
    assert len(listed) == 2
    unconditional = client.get_model_metadata("plain")
    assert [one["name"] for one in unconditional["inputs"]] == ["seed", "index", "truncation"]


def test_tritonclient_raises_our_sentences(client: triton.InferenceServerClient) -> None:
    inputs = [
        tensor("seed", "UINT64", [1], binary=True),
        tensor("index", "UINT64", [1], binary=True),
        tensor("label", "BYTES", ["bird"], binary=True),
    ]
    cases: list[tuple[str, str, Callable[[], object]]] = [
        ("422", "unknown label 'bird': this bundle has cat, dog", lambda: client.infer("tiny", inputs)),
        ("404", "there is no bundle 'none' here", lambda: client.infer("none", inputs)),
        ("404", "there is no bundle 'tiny@2' here", lambda: client.get_model_config("tiny", "2")),
        ("422", "label is missing: a row is an address", lambda: client.infer("tiny", inputs[:2])),
        ("422", "not 'label' (this bundle has no labels)", lambda: client.infer("plain", inputs)),
        ("422", "not 'priority'", lambda: client.infer("tiny", inputs, priority=1)),
        ("415", "compressed", lambda: client.infer("tiny", inputs, request_compression_algorithm="gzip")),
        ("404", "nothing at this address", lambda: client.get_inference_statistics("tiny")),
        ("404", "nothing at this address", lambda: client.unload_model("tiny")),
        (
            "422",
            "not 'classification'",
            lambda: client.infer("tiny", inputs, outputs=[triton.InferRequestedOutput("image", class_count=1)]),
        ),
        (
            "422",
            "the one output is image",
            lambda: client.infer("tiny", inputs, outputs=[triton.InferRequestedOutput("logits")]),
        ),
    ]
    for status, sentence, call in cases:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == status
        assert sentence in caught.value.message()


def test_the_largest_request_fits_though_its_body_is_longer_than_json_may_be(
    client: triton.InferenceServerClient, tiny: Generator
) -> None:
    """The service takes 4,096 bytes of JSON and 3,000 images: here are 3,000 addresses, all different seeds."""
    seeds = np.arange(3000, dtype=np.uint64)
    inputs = [
        tensor("seed", "UINT64", seeds.tolist(), binary=True),
        tensor("index", "UINT64", [5] * 3000, binary=True),
        tensor("label", "BYTES", ["été 10"] * 3000, binary=True),
    ]
    images = client.infer("tiny", inputs).as_numpy("image")
    for row in (0, 1, 1234, 2999):
        one = tiny.generate({"été 10": 1}, seed=row, offset=5)
        assert np.array_equal(images[row], one.images[0])


# ---------------------------------------------------------------------------------------------- bodies


INFO = BundleInfo("m", "0" * 64, "gan", ("cat", "é"), (2, 2, 1), 4, "exact", 0, "cpu")


def one(**changes: Any) -> Json:
    """A request of one row, as JSON, with some of its tensors changed or left out (None)."""
    tensors: Json = {
        "seed": {"shape": [1], "datatype": "UINT64", "data": [7]},
        "index": {"shape": [1, 1], "datatype": "UINT64", "data": [[0]]},
        "label": {"shape": [1], "datatype": "BYTES", "data": ["cat"]},
    }
    extra = {name: changes.pop(name) for name in ("id", "parameters", "outputs") if name in changes}
    for name, change in changes.items():
        tensors[name] = None if change is None else {**tensors.get(name, {"shape": [1]}), **change}
    return {"inputs": [{"name": name, **given} for name, given in tensors.items() if given is not None], **extra}


def parse(body: Json, tail: bytes = b"", info: BundleInfo = INFO, most: int = 10) -> oip.Inference:
    header = json.dumps(body).encode()
    return oip.parse(header + tail, len(header), info, most)


@pytest.mark.parametrize(
    ("body", "tail", "sentence"),
    [
        ({}, b"", "inputs is missing"),
        ({"inputs": []}, b"", "inputs must be tensors"),
        ({"inputs": [{}]}, b"", "inputs must be tensors"),
        ({**one(), "x": 1}, b"", "'x' is not known here"),
        (one(seed={"x": 1}), b"", "inputs must be tensors"),
        (one(id=3), b"", "id must be text"),
        (one(seed=None), b"", "seed is missing"),
        (one(noise={"datatype": "FP32", "data": [0.0]}), b"", "not 'noise'"),
        ({"inputs": [*one()["inputs"], one()["inputs"][0]]}, b"", "each once, not 'seed'"),
        (one(seed={"datatype": "INT32"}), b"", "seed must be UINT64, not 'INT32'"),
        (one(label={"datatype": "UINT64"}), b"", "label must be BYTES or INT64"),
        (one(seed={"shape": [0], "data": []}), b"", r"shape \[N\] or \[N, 1\]"),
        (one(seed={"shape": [1, 1, 1]}), b"", r"shape \[N\] or \[N, 1\]"),
        (one(seed={"shape": [1, 2]}), b"", r"shape \[N\] or \[N, 1\]"),
        (one(seed={"shape": []}), b"", "inputs must be tensors"),
        (one(seed={"shape": [-1]}), b"", "inputs must be tensors"),
        (one(seed={"shape": [11]}), b"", "11 images are more than the 10"),
        (one(seed={"shape": [2], "data": [1, 2]}), b"", "as many rows"),
        (one(seed={"data": [1, 2]}), b"", "has 2 values, not 1"),
        (one(seed={"data": [True]}), b"", "no UINT64"),
        (one(seed={"data": [1.0]}), b"", "no UINT64"),
        (one(seed={"data": ["1"]}), b"", "no UINT64"),
        (one(seed={"data": [[[1]]]}), b"", "no UINT64"),
        (one(seed={"data": [-1]}), b"", "no UINT64"),
        (one(seed={"data": [2**64]}), b"", "no UINT64"),
        (one(index={"data": [2**64 - 1]}), b"", "index must be below"),
        (one(label={"data": [3]}), b"", "no BYTES"),
        (one(label={"data": ["\ud800"]}), b"", "unknown label"),
        (one(label={"datatype": "INT64", "data": [2]}), b"", "unknown label '2'"),
        (one(label={"datatype": "INT64", "data": [-1]}), b"", "unknown label '-1'"),
        (one(truncation={"datatype": "FP64", "data": [0]}), b"", "truncation must be in"),
        (one(truncation={"datatype": "FP64", "data": [10**400]}), b"", "no FP64"),
        (one(truncation={"datatype": "FP32", "data": [1e300]}), b"", "truncation must be in"),
        (one(parameters={"timeout": -1}), b"", "microseconds"),
        (one(parameters={"timeout": 1.5}), b"", "microseconds"),
        (one(parameters={"timeout": True}), b"", "microseconds"),
        (one(parameters={"binary_data_output": 1}), b"", "true or false"),
        (one(parameters={"sequence_id": 1}), b"", "not 'sequence_id'"),
        (one(outputs=[{"name": "image"}, {"name": "image"}]), b"", "ask for it once"),
        (one(outputs=[{"name": "image", "parameters": {"shared_memory_region": "r"}}]), b"", "not 'shared_memory_r"),
        (one(seed={"parameters": {"shared_memory_region": "r"}}), b"", "not 'shared_memory_region'"),
        (one(seed={"parameters": {"binary_data_size": 8}}), b"", "either data or"),
        (one(seed={"data": None}), b"", "either data or"),
        (one(seed={"data": None, "parameters": {"binary_data_size": "8"}}), b"", "number of bytes"),
        (one(seed={"data": None, "parameters": {"binary_data_size": 8}}), b"1234567", "should have 8 bytes"),
        (one(seed={"data": None, "parameters": {"binary_data_size": 7}}), b"1234567", "7 bytes behind"  ),
        (one(seed={"data": None, "parameters": {"binary_data_size": 8}}), b"123456789", "1 bytes behind the JSON"),
        (one(), b"1", "1 bytes behind the JSON"),
        (one(label={"data": None, "parameters": {"binary_data_size": 3}}), b"cat", "1 texts"),
        (one(label={"data": None, "parameters": {"binary_data_size": 8}}), b"\x03\0\0\0cat!", "1 texts"),
        (one(label={"data": None, "parameters": {"binary_data_size": 7}}), b"\x04\0\0\0cat", "1 texts"),
        (one(label={"data": None, "parameters": {"binary_data_size": 5}}), b"\x01\0\0\0\xff", "unknown label"),
        (
            one(truncation={"datatype": "FP32", "parameters": {"binary_data_size": 4}}),
            struct.pack("<f", float("nan")),
            "truncation must be in",
        ),
    ],
)  # fmt: skip
def test_what_is_no_inference_has_one_sentence(body: Json, tail: bytes, sentence: str) -> None:
    with pytest.raises(AugmintError, match=sentence) as caught:
        parse(body, tail)
    assert caught.value.code in ("request.invalid", "request.unknown-label", "request.too-large")


def test_an_answer_in_json_has_a_limit() -> None:
    large = BundleInfo("m", "0" * 64, "gan", (), (1024, 1024, 3), 4, "exact", 0, "cpu")
    with pytest.raises(AugmintError, match="ask for binary data") as caught:
        parse(one(label=None), info=large)
    assert caught.value.code == "request.too-large"
    assert parse(one(label=None, parameters={"binary_data_output": True}), info=large).binary


def test_an_output_may_differ_from_the_others() -> None:
    for whole, own, binary in ((True, None, True), (True, False, False), (False, True, True), (None, None, False)):
        parameters = {} if whole is None else {"binary_data_output": whole}
        outputs = [{"name": "image", "parameters": {} if own is None else {"binary_data": own}}]
        assert parse(one(parameters=parameters, outputs=outputs)).binary is binary


def test_the_header_may_not_be_longer_than_the_body() -> None:
    with pytest.raises(RequestError, match="is 9, but the body has 2 bytes") as caught:
        oip.parse(b"{}", 9, INFO, 1)
    assert caught.value.code == "request.malformed"


# ---------------------------------------------------------------------------------------------- without a server


async def infer(service: Harness, body: Json | bytes, **headers: str) -> Any:
    pieces = [body if isinstance(body, bytes) else json.dumps(body).encode()]
    return await service.ask(pieces=pieces, path="/v2/models/tiny/infer", headers=headers)


def test_the_clients_timeout_holds(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        reply = await infer(service, one(parameters={"timeout": 50_000}))
        assert (reply.status, reply.json()["code"]) == (504, "deadline")
        assert reply.json()["error"] == reply.json()["detail"]

    run(scenario)


def test_an_inference_counts_its_images(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        service.gate.set()
        full = one(**{name: {"shape": [100], "data": [value] * 100} for name, value in
                      (("seed", 1), ("index", 2), ("label", "cat"))})  # fmt: skip
        assert [(await infer(service, full)).status for _ in range(3)] == [200, 200, 429]
        over = one(seed={"shape": [101], "data": [1] * 101})
        assert (await infer(service, over)).json()["code"] == "too-many-images"

    run(scenario, rate_images=4, max_images=100, max_body=1 << 16)


def test_errors_below_v2_alone_say_error(run: Callable[..., None]) -> None:
    async def scenario(service: Harness) -> None:
        for path in ("/v2/nothing", "/v1/nothing"):
            reply = await service.ask(method="GET", path=path)
            assert reply is not None
            assert ("error" in reply.json()) == path.startswith("/v2")
        service.api.begin_draining()
        reply = await service.ask(method="GET", path="/v2/health/ready")
        assert reply is not None
        assert (reply.status, reply.json()["code"]) == (503, "draining")

    run(scenario)


def test_a_browsers_page_must_name_the_type(service: Service) -> None:
    """A page of another origin could otherwise have images made unasked: a browser asks first only for such types."""

    def ask(**headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        try:
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(one()), headers)
            return connection.getresponse().status
        finally:
            connection.close()

    assert ask() == 200
    assert ask(Origin="http://evil.example") == 415
    assert ask(**{"Content-Type": "text/plain"}) == 415
    assert ask(**{"Content-Type": "application/octet-stream"}) == 200


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [("x", 400, "malformed"), ("-1", 400, "malformed"), ("99999", 413, "body-too-large"), ("3000", 400, "malformed")],
)
def test_wrong_lengths(service: Service, header: str, status: int, code: str) -> None:
    reply = service.ask("POST", "/v2/models/tiny/infer", one(), {"Inference-Header-Content-Length": header})
    assert (reply.status, reply.json()["code"]) == (status, code)


def test_a_binary_body_has_a_limit_too(service: Service) -> None:
    reply = service.ask("POST", "/v2/models/tiny/infer", b" " * 200_000, {"Inference-Header-Content-Length": "20"})
    assert (reply.status, reply.json()["code"]) == (413, "body-too-large")


scalars = st.none() | st.booleans() | st.integers(-1, 2**64) | st.floats(allow_nan=False) | st.text(max_size=4)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["seed", "index", "label", "truncation", "x"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["UINT64", "INT64", "BYTES", "FP64", "FP32", "UINT8"]),
    },
    optional={
        "data": st.lists(scalars | st.lists(scalars, max_size=2), max_size=3),
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), scalars, max_size=2),
    },
)
documents = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=4)},
    optional={
        "id": scalars,
        "parameters": st.dictionaries(st.sampled_from(["timeout", "binary_data_output", "x"]), scalars, max_size=2),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["image", "x"])}), max_size=2),
    },
)
bodies = st.binary(max_size=120) | documents.map(lambda document: json.dumps(document).encode())


def test_any_body_is_an_inference_or_one_sentence(run: Callable[..., None]) -> None:
    statuses: list[int] = []

    async def scenario(service: Harness) -> None:
        service.gate.set()
        loop = asyncio.get_running_loop()

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(bodies, st.binary(max_size=40), st.none() | st.integers(0, 200) | st.text("0123456789-x ", max_size=6))
        def attack(body: bytes, tail: bytes, length: Any) -> None:
            given_length = {} if length is None else {"Inference-Header-Content-Length": str(length)}
            asked = infer(service, body + (tail if length is not None else b""), **given_length)
            reply = asyncio.run_coroutine_threadsafe(asked, loop).result(30)
            statuses.append(reply.status)
            assert reply.status < 500
            assert reply.status == 200 or reply.json()["error"]

        await asyncio.to_thread(attack)

    run(scenario)
    assert statuses


row = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2), st.sampled_from(["cat", "é"]), st.floats(0.01, 1.0)
)


@given(st.lists(row, min_size=1, max_size=10), st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=60)
def test_tensors_say_the_same_in_json_and_in_bytes(rows: list[Any], binary: list[bool]) -> None:
    kinds = ("UINT64", "UINT64", "BYTES", "FP64")
    inputs, tail = [], b""
    for name, kind, column, raw in zip(
        ("seed", "index", "label", "truncation"), kinds, zip(*rows, strict=True), binary, strict=True
    ):
        given_tensor: Json = {"name": name, "shape": [len(rows), 1], "datatype": kind}
        if raw:
            formats = {"UINT64": "<Q", "FP64": "<d"}
            parts = [
                struct.pack("<I", len(value.encode())) + value.encode()
                if kind == "BYTES"
                else struct.pack(formats[kind], value)
                for value in column
            ]
            given_tensor["parameters"] = {"binary_data_size": sum(map(len, parts))}
            tail += b"".join(parts)
        else:
            given_tensor["data"] = list(column)
        inputs.append(given_tensor)
    request = parse({"inputs": inputs}, tail).request
    labels, indices = request.addresses()
    assert [INFO.class_names[label] for label in labels] == [label for _, _, label, _ in rows]
    assert indices.tolist() == [index for _, index, _, _ in rows]
    draws = [draw for draw, (_, n) in zip(request.draws, request.counts, strict=True) for _ in range(n)]
    assert draws == [(seed, share) for seed, _, _, share in rows]


def test_a_token_is_asked_for(run: Callable[..., None], tmp_path: Path) -> None:
    from serving.access import add_token

    tokens = tmp_path / "tokens.json"
    secret = add_token(tokens, "t", scopes=["generate"])

    async def scenario(service: Harness) -> None:
        service.gate.set()
        assert (await infer(service, one())).status == 401
        assert (await infer(service, one(), authorization=f"Bearer {secret}")).status == 200
        for path, status in (("/v2", 401), ("/v2/models/tiny", 401), ("/v2/health/ready", 200)):
            reply = await service.ask(method="GET", path=path)
            assert reply is not None
            assert reply.status == status

    run(scenario, tokens=tokens)
