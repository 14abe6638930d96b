"""Settings, Accept, bundles' places and devices, problems, the OpenAPI document: without a server."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augmint import errors
from augmint.bundle import read_bundle
from augmint.errors import AugmintError, BundleError, RequestError, UsageError
from serving import accept, openapi, problems
from serving.api import Api
from serving.bundles import check_bundles, device_of_worker, open_bundles, preferred_batch, warm
from serving.codecs import FORMATS
from serving.metrics import Metrics
from serving.schema import GenerateBody, parse_body
from serving.settings import Settings, find_bundles
from tests.tinybundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]

# ------------------------------------------------------------------------------------------------- settings


def test_settings_have_defaults_and_round_trip() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment({"AUGMINT_MAX_IMAGES": "  "}) == Settings()
    other = Settings(
        bundles=(Path("/a"), Path("/b c")), device="cuda:1", workers=3, max_images=5, batching=False, drain_s=0.25
    )
    assert Settings.from_environment(other.to_environment()) == other


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DEVICE", "gpu", "AUGMINT_DEVICE must be auto, cpu, cuda or cuda:N, not 'gpu'."),
        ("DEVICE", "cpu:1", "AUGMINT_DEVICE"),
        ("WORKERS", "0", "AUGMINT_WORKERS must be a whole number from 1 to 256"),
        ("MAX_IMAGES", "many", "AUGMINT_MAX_IMAGES must be a whole number"),
        ("QUEUE_S", "-1", "AUGMINT_QUEUE_S must be a number of seconds from 0"),
        ("TIMEOUT_S", "nan", "AUGMINT_TIMEOUT_S must be a number of seconds"),
        ("BATCHING", "maybe", "AUGMINT_BATCHING must be on or off"),
        ("BUNDLES", os.pathsep, "AUGMINT_BUNDLES must be one or more directories"),
        ("QUEUE_IMAGES", "5", "must be at least AUGMINT_MAX_IMAGES"),
    ],
)
def test_settings_refuse_nonsense(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.split(" (")[0].replace(".", r"\.")):
        Settings.from_environment({f"AUGMINT_{name}": value})


# ------------------------------------------------------------------------------------------------- bundles


def test_bundles_are_found_in_directories(tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "many" / "b")
    shutil.copytree(tiny_bundle, tmp_path / "many" / "a")
    (tmp_path / "many" / ".half-written").mkdir()
    (tmp_path / "many" / "notes").mkdir()
    many = tmp_path / "many"
    assert find_bundles((many, many / "a")) == ((many / "a").resolve(), (many / "b").resolve())
    with pytest.raises(UsageError, match="is not a directory"):
        find_bundles((tmp_path / "none",))
    with pytest.raises(UsageError, match="holds no bundle"):
        find_bundles((many / "notes",))
    assert len(check_bundles(Settings(bundles=(many,)))) == 2


def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bad")
    with (tmp_path / "bad" / "generator.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01")
    with pytest.raises(BundleError, match=r"bad/generator\.onnx"):
        open_bundles(Settings(bundles=(tmp_path,), device="cpu"))


def test_devices_of_workers() -> None:
    two = Settings(device="cuda", workers=2)
    assert [device_of_worker(two, i, {"CUDA_VISIBLE_DEVICES": "4,5"}) for i in (1, 2)] == ["cuda:0", "cuda:1"]
    assert [device_of_worker(two, i, {"CUDA_VISIBLE_DEVICES": "0"}) for i in (1, 2)] == ["cuda:0", "cuda:0"]
    assert device_of_worker(two, None, {}) == "cuda"
    assert device_of_worker(Settings(device="cuda"), 1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == "cuda"
    assert device_of_worker(Settings(device="auto", workers=4), 3, {}) == "auto"
    assert device_of_worker(Settings(device="cuda:3", workers=4), 1, {}) == "cuda:3"


def test_only_buckets_that_fit_into_memory_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    def render(most: int) -> Any:
        def made(labels: Any, *rest: Any) -> Any:
            if len(labels) > most:
                raise RuntimeError("Failed to allocate memory")
            return np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)

        return made

    assert warm(render(100), 100, "a") == (1, 2, 4, 8, 16, 32, 64, 100)
    assert not caplog.records
    assert warm(render(20), 100, "a") == (1, 2, 4, 8, 16)
    assert "a cannot make 32 images at once" in caplog.text
    with pytest.raises(RuntimeError):
        warm(render(0), 100, "a")


def test_the_preferred_batch_follows_the_cost() -> None:
    import time

    def costs(fixed: float, each: float) -> Any:
        def render(labels: Any, *_: Any) -> Any:
            end = time.thread_time() + fixed + each * len(labels)
            while time.thread_time() < end:
                pass
            return np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)

        return render

    assert preferred_batch(costs(0.002, 0.0)) == 64  # only calls cost: as many rows as there can be
    assert preferred_batch(costs(0.0, 0.01)) <= 4  # only rows cost: no need to let anybody wait


# ------------------------------------------------------------------------------------------------- Accept


@pytest.mark.parametrize(
    ("header", "images", "chosen"),
    [
        ("", 5, "npz"),
        ("*/*", 5, "npz"),
        ("application/*", 5, "npz"),
        ("application/zip", 5, "zip"),
        ("APPLICATION/ZIP ; q=0.5", 5, "zip"),
        ("application/x-npy, application/x-npz;q=0.9", 5, "npy"),
        ("application/*;q=0.5, application/zip", 5, "zip"),
        ("*/*, application/x-npz;q=0", 5, "npy"),
        ("image/*", 1, "png"),
        ("image/png,*/*;q=0.8", 1, "png"),
        ("image/avif,image/webp,image/png;q=0.8", 1, "webp"),
        ("image/png,*/*;q=0.8", 2, "npz"),
        ("text/html, nonsense, application/x-npy;q=2, application/zip;q=0.1", 2, "zip"),
    ],
)
def test_accept(header: str, images: int, chosen: str) -> None:
    assert accept.choose(header, images) == chosen


@pytest.mark.parametrize("header", ["text/html", "image/png", "application/zip;q=0", "*/*;q=0", "gibberish"])
def test_nothing_acceptable(header: str) -> None:
    with pytest.raises(RequestError, match="none of the formats") as caught:
        accept.choose(header, 2)
    assert caught.value.code == "request.not-acceptable"


@given(st.text(max_size=60), st.integers(1, 3))
def test_any_accept_header_is_answered(header: str, images: int) -> None:
    outcome: object
    try:
        outcome = accept.choose(header, images)
    except RequestError as error:
        outcome = error.code
    assert outcome in {*FORMATS, "request.not-acceptable"}


# ------------------------------------------------------------------------------------------------- bodies, problems


@given(
    st.binary(max_size=80) | st.text(alphabet='{}[]":,0123456789counts.eE-+ ntrufalsNI', max_size=60).map(str.encode)
)
def test_any_body_is_a_request_or_one_sentence(data: bytes) -> None:
    outcome: object
    try:
        outcome = type(parse_body(data))
    except RequestError as error:
        outcome = (error.code, str(error)[-1])
    assert outcome in (GenerateBody, ("request.malformed", "."), ("request.invalid", "."))


def test_every_code_that_serving_raises_is_in_the_table() -> None:
    """The table is whole, and nothing in it is dead."""
    written = {
        value.value
        for path in [
            *(ROOT / "serving").rglob("*.py"),
            *(ROOT / "augmint" / name for name in ("samples.py", "errors.py", "latent_space.py")),
        ]
        if path.name != "problems.py"
        for value in ast.walk(ast.parse(path.read_text()))
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }
    codes = {word for word in written if word.startswith(("request.", "service.")) and " " not in word}
    # Raised before there is a server, made by the client, or never sent.
    others = {"service.address", "service.cancelled", "service.transport", "service.unavailable"}
    others.add("service.name")  # OpenTelemetry's, not a code
    assert codes - others <= set(problems.PROBLEMS)
    assert set(problems.PROBLEMS) <= codes


@pytest.mark.parametrize("name", sorted(set(errors.__all__)))
def test_no_error_of_ours_leaks_or_is_unmapped(name: str) -> None:
    error: AugmintError = getattr(errors, name)("/secret/path is broken.")
    problem = problems.problem_of(error)
    assert 400 <= problem.status <= 599
    known = error.code in problems.PROBLEMS
    assert ("secret" in problems.body_of(error, "1").decode()) == known


# ------------------------------------------------------------------------------------------------- OpenAPI


def document() -> dict[str, Any]:
    return openapi.document(Api(Settings(), Metrics(prometheus_client.CollectorRegistry())).context.routes)


def test_the_openapi_document_is_valid() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate

    validate(document(), cls=OpenAPIV31SpecValidator)


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [operation["operationId"] for item in document()["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_the_openapi_document_names_every_problem() -> None:
    described = " ".join(
        response["description"]
        for item in document()["paths"].values()
        for operation in item.values()
        for response in operation["responses"].values()
    )
    missing = {p.code for p in problems.PROBLEMS.values() if f"{p.code}:" not in described}
    assert missing == {"method-not-allowed"}  # of addresses and methods that a document of addresses does not have


def test_tags_differ_between_bundles(tmp_path: Path) -> None:
    from augmint.samples import Request
    from serving.replies import etag

    first = write_tiny_bundle(tmp_path / "one", seed=1)
    second = write_tiny_bundle(tmp_path / "two", seed=2)
    served = open_bundles(Settings(bundles=(first, second), device="cpu"))
    request = Request.make({"cat": 1}, ("cat", "dog", "été 10"), seed=1)
    tags = {etag(bundle, request, "npy") for bundle in served.values()}
    assert len(tags) == 2
    assert read_bundle(first).digest == served[first].info.digest
