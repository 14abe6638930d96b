"""A service in this process, behind httpx2's injectable transport: for failures a real one cannot be made to show.

It answers as `serving` does, from a local Generator; `faults` are answers, exceptions or functions to be given instead,
one for each request to /v1/generate, until they are used up. tests/serving asks the real service.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import httpx2

from augmint.archive import pack
from augmint.errors import RequestError, UnknownLabelError
from augmint.generator import Generator
from augmint.samples import Request

Fault = httpx2.Response | Exception | Callable[[httpx2.Response], httpx2.Response] | None


def problem(
    status: int, code: str, detail: str = "No.", headers: dict[str, str] | None = None, **more: Any
) -> httpx2.Response:
    document = {"type": f"urn:augmint:{code}", "title": code, "status": status, "detail": detail, "code": code, **more}
    kind = {"Content-Type": "application/problem+json", "X-Request-ID": "r-1", **(headers or {})}
    return httpx2.Response(status, content=json.dumps(document).encode(), headers=kind)


def sha256(body: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


class FakeService:
    """`transport` goes into a client; `asked` is the JSON of every request for images that arrived."""

    def __init__(self, *generators: Generator, limit: int = 1000, faults: list[Fault] | None = None) -> None:
        self.generators = {generator.info().name: generator for generator in generators}
        self.limit = limit
        self.stated_limit: int | None = limit
        self.faults = faults or []
        self.asked: list[dict[str, Any]] = []
        self.catalogues = 0
        self.requests: list[httpx2.Request] = []
        self.transport = httpx2.MockTransport(self.handle)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if request.url.path == "/v1/bundles":
            self.catalogues += 1
            return httpx2.Response(200, json=self.catalogue())
        assert (request.method, request.url.path) == ("POST", "/v1/generate")
        document = json.loads(request.content)
        self.asked.append(document)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, httpx2.Response):  # a copy, because a response is used up by being read
            return httpx2.Response(fault.status_code, content=fault.content, headers=fault.headers)
        response = self.generate(document)
        return fault(response) if fault else response

    def catalogue(self) -> dict[str, Any]:
        bundles = [asdict(generator.info()) | {"news": 1} for generator in self.generators.values()]
        limits = {} if self.stated_limit is None else {"limits": {"images": self.stated_limit, "bytes": 1}}
        return {"bundles": bundles, **limits}

    def generate(self, document: dict[str, Any], keep: slice = slice(None)) -> httpx2.Response:
        name = next((n for n, g in self.generators.items() if document["bundle"] in (n, g.digest)), None)
        if name is None:
            return problem(404, "unknown-bundle", "No such bundle.", bundles=list(self.generators))
        counts = document["counts"]
        total = counts if isinstance(counts, int) else sum(counts.values())
        if total > self.limit:
            return problem(413, "too-many-images", "Too many.")
        try:
            generator = self.generators[name]
            request = Request.make(
                counts,
                generator.class_names,
                seed=int(document["seed"]),
                offset=int(document["offset"]),
                truncation=document["truncation"],
                quality=document.get("quality", "none"),
                offered=generator.info().quality,
                candidates=document.get("candidates"),
                edit=document.get("edit"),
                editable=generator.info().edits,
            )
            samples = generator._select(request) if request.quality else generator._answer(request, 0, request.total)
        except UnknownLabelError as error:
            return problem(422, "unknown-label", str(error), labels=list(error.labels))
        except RequestError as error:
            return problem(422, "invalid", str(error))
        return self.answer(samples, total, keep)

    def answer(self, samples: Any, total: int, keep: slice = slice(None), **changed: Any) -> httpx2.Response:
        fields = ("images", "labels", "seeds", "indices")
        samples = replace(samples, **({name: getattr(samples, name)[keep] for name in fields} | changed))
        body = pack(samples)
        headers = {
            "Content-Type": "application/x-npz",
            "Augmint-Requested": str(total),
            "Augmint-Delivered": str(len(samples)),
            "Augmint-Bundle": samples.bundle,
            "Augmint-Seed": "0",
            "Augmint-Reproducibility": samples.reproducibility,
            "Repr-Digest": sha256(body),
        }
        return httpx2.Response(200, content=body, headers=headers)
