"""The OpenAPI 3.1 document of the API: schemas from the pydantic models, the rest from the tables in here.

It is built once and served at /openapi.json; a test validates it and compares its paths with the router's.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from augmint import __version__
from serving.codecs import FORMATS
from serving.problems import PROBLEMS
from serving.schema import BundleDetail, BundleList, GenerateBody, PlanBody, PlanModel, ProblemModel

__all__ = ["HEADERS", "document"]

_REQUEST_ID: Final = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "returned and logged; one is made where it is missing or not 1 … 128 of A-Za-z0-9._~:+/=@-",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags that the client has",
    "schema": {"type": "string"},
}
_BUNDLE: Final = {
    "name": "bundle",
    "in": "path",
    "required": True,
    "description": "a bundle's name, or its digest",
    "schema": {"type": "string"},
}
_ACCEPT: Final = {
    "name": "Accept",
    "in": "header",
    "description": "media ranges with q-values; `format` in the body goes before it",
    "schema": {"type": "string"},
}

HEADERS: Final[dict[str, tuple[str, str]]] = {
    "Augmint-Requested": ("integer", "images asked for"),
    "Augmint-Delivered": ("integer", "images in this answer"),
    "Augmint-Quality": ("string", "which images were kept; only where not all were"),
    "Augmint-Generated": ("integer", "images made, those rejected included; only under a quality"),
    "Augmint-Rejected": ("string", "label=N, realism=N, copy=N: images rejected, by reason; only under a quality"),
    "Augmint-Bundle": ("string", "the bundle's digest"),
    "Augmint-Seed": ("string", "the seed, also where the service chose it"),
    "Augmint-Reproducibility": ("string", "exact or tolerance"),
    "Repr-Digest": ("string", "sha-256 of the body (RFC 9530)"),
    "ETag": ("string", "only where the request named a seed"),
    "X-Request-ID": ("string", "the request's id"),
    "Retry-After": ("integer", "seconds to wait before trying again"),
    "WWW-Authenticate": ("string", "what kind of token is asked for"),
    "Allow": ("string", "the methods that this address takes"),
}


# What any address may answer.
_ALWAYS: Final = ("misdirected", "uri-too-long", "headers-too-large")


@cache
def document() -> dict[str, Any]:
    models = [(model, "serialization") for model in (BundleList, BundleDetail, PlanModel, ProblemModel)]
    _, schemas = models_json_schema(
        [(GenerateBody, "validation"), (PlanBody, "validation"), *models],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "augmint",
            "version": __version__,
            "summary": "Augmented image samples by class label.",
            "description": (
                "An image has the address (bundle, label, seed, index): the same address gives the same image, in "
                "whatever request and batch it is made. Errors are RFC 9457 problem details; `code` is stable."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "images", "description": "Generating."},
            {"name": "bundles", "description": "What can be generated."},
            {"name": "operation", "description": "For those who run the service."},
        ],
        "paths": {
            "/v1/generate": {"post": _generate()},
            "/v1/bundles": {
                "get": _get("bundles", "listBundles", "The bundles and the limits.", _json("BundleList"), cached=True)
            },
            "/v1/bundles/{bundle}": {
                "get": _get(
                    "bundles",
                    "getBundle",
                    "One bundle: what it makes, where it comes from, what was measured.",
                    _json("BundleDetail"),
                    parameters=[_BUNDLE],
                    errors=("unknown-bundle",),
                    cached=True,
                )
            },
            "/v1/bundles/{bundle}/samples.png": {
                "get": _get(
                    "bundles",
                    "getSampleSheet",
                    "A sheet of samples, made at export.",
                    {"image/png": {}},
                    parameters=[_BUNDLE],
                    errors=("unknown-bundle", "not-found"),
                    cached=True,
                )
            },
            "/v1/bundles/{bundle}/report": {
                "get": _get(
                    "bundles",
                    "getReport",
                    "The evaluation's page, made at export: whether the images help a classifier.",
                    {"text/html": {}},
                    parameters=[_BUNDLE],
                    errors=("unknown-bundle", "not-found"),
                    cached=True,
                )
            },
            "/v1/bundles/{bundle}/images/{label}/{seed}/{index}.{format}": {
                "get": _image("getImage", parameters=[_BUNDLE, _path("label", "a label of the bundle"), *_ADDRESS])
            },
            "/v1/bundles/{bundle}/images/{seed}/{index}.{format}": {
                "get": _image("getUnlabelledImage", parameters=[_BUNDLE, *_ADDRESS])
            },
            "/v1/bundles/{bundle}/shards/{shard}.tar": {"get": _shard()},
            "/v1/plan": {"post": _plan()},
            "/": {
                "get": _get(
                    "images", "getPage", "A page to try it.", {"text/html": {}}, cached=True, errors=(), ready=False
                )
            },
            "/livez": {"get": _probe("isAlive", "Whether the process answers.", ready=False)},
            "/healthz": {"get": _probe("isHealthy", "The same as /livez.", ready=False)},
            "/readyz": {
                "get": _probe(
                    "isReady",
                    "Whether every bundle reproduced its golden samples and is warm; not while shutting down.",
                )
            },
            "/metrics": {
                "get": _get(
                    "operation", "getMetrics", "Prometheus metrics.", {"text/plain": {"schema": {"type": "string"}}}
                )
            },
            "/openapi.json": {
                "get": _get(
                    "operation",
                    "getOpenAPI",
                    "This document.",
                    {"application/json": {"schema": {"type": "object"}}},
                    cached=True,
                    ready=False,
                )
            },
        },
        # Where the service was given tokens.
        "security": [{}, {"token": []}],
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by `augmint token`; scopes: "
                    "generate for everything under /v1, admin for /metrics",
                }
            },
            "schemas": schemas["$defs"],
            "headers": {
                name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in HEADERS.items()
            },
        },
    }


def _generate() -> dict[str, Any]:
    content = {
        media.name: {"schema": {"type": "string", "format": "binary", "description": media.description}}
        for media in FORMATS.values()
    }
    about = ("Augmint-Requested", "Augmint-Bundle", "Augmint-Seed", "Augmint-Reproducibility", "X-Request-ID")
    return {
        "tags": ["images"],
        "operationId": "generate",
        "summary": "Images by label.",
        "description": (
            "Safe and idempotent: with a seed the answer is a function of the request. That is why a POST honours "
            "If-None-Match as a GET does, with 304."
        ),
        "parameters": [_ACCEPT, _IF_NONE_MATCH, _REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/GenerateBody"}}},
        },
        "responses": {
            "200": {
                "description": "The images, in the order of the labels asked for, indices rising within each.",
                "headers": _headers(
                    *about,
                    "Augmint-Delivered",
                    "Augmint-Quality",
                    "Augmint-Generated",
                    "Augmint-Rejected",
                    "Repr-Digest",
                    "ETag",
                ),
                "content": content,
            },
            "304": {"description": "The client has it already.", "headers": _headers(*about, "ETag")},
            **_errors(
                "malformed",
                "unknown-bundle",
                "not-acceptable",
                "too-many-images",
                "body-too-large",
                "unsupported-media",
                "unknown-label",
                "quality",
                "edit",
                "invalid",
                *_ALWAYS,
                "unauthorized",
                "forbidden",
                "rate",
                "quota",
                "internal",
                "queue-full",
                "not-ready",
                "draining",
                "deadline",
            ),
        },
    }


def _path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _option(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}


_TRUNCATION: Final = _option("truncation", "above 0, at most 1; 1 by default")
_ADDRESS: Final = [
    _path("seed", "0 … 2^64 - 1"),
    _path("index", "0 … 2^64 - 2"),
    _path("format", "png or npy"),
    _TRUNCATION,
    _option("edit", "amounts by attribute, such as slant:1.5,size:-1"),
]


def _image(name: str, *, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {"image/png": {}, "application/x-npy": {}}
    return _made(
        name,
        "One image by its address; a bundle named by its digest makes the answer cacheable for ever.",
        content,
        parameters,
    )


def _shard() -> dict[str, Any]:
    return _made(
        "getShard",
        "A piece of an endless data set, as the webdataset library reads it: key.png and key.cls, in turn by label.",
        {"application/x-tar": {}},
        [
            _BUNDLE,
            _path("shard", "its number, from 0, with or without leading zeros"),
            _option("per_shard", "images of a shard; 1000 by default"),
            _option("seed", "0 by default"),
            _option("labels", "balanced (the default), or weights such as a:2,b:1"),
            _TRUNCATION,
        ],
    )


def _made(name: str, summary: str, content: dict[str, Any], parameters: list[dict[str, Any]]) -> dict[str, Any]:
    errors = ("unknown-bundle", "unknown-label", "not-found", "invalid", "edit", "too-many-images", "rate", "quota")
    late = ("queue-full", "draining", "deadline")
    operation = _get("bundles", name, summary, content, parameters=parameters, errors=(*errors, *late), cached=True)
    return {**operation, "tags": ["images"]}


def _plan() -> dict[str, Any]:
    operation = _get(
        "bundles",
        "plan",
        "How many images would balance these counts, and what they would cost.",
        _json("PlanModel"),
        errors=("malformed", "body-too-large", "unsupported-media", "unknown-bundle", "unknown-label", "invalid"),
    )
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PlanBody"}}}}
    late = _errors("deadline")
    return {**operation, "tags": ["images"], "requestBody": body, "responses": {**operation["responses"], **late}}


def _get(
    tag: str,
    name: str,
    summary: str,
    content: dict[str, Any],
    *,
    parameters: list[dict[str, Any]] | None = None,
    errors: tuple[str, ...] = (),
    cached: bool = False,
    ready: bool = True,
) -> dict[str, Any]:
    """A GET; `cached` ones have an ETag, `ready` ones wait for the bundles."""
    responses: dict[str, Any] = {
        "200": {
            "description": "Found.",
            "headers": _headers("X-Request-ID", *(["ETag"] if cached else [])),
            "content": content,
        }
    }
    if cached:
        responses["304"] = {
            "description": "The client has it already.",
            "headers": _headers("X-Request-ID", "ETag"),
        }
    tokens = ("unauthorized", "forbidden") if tag == "bundles" or name == "getMetrics" else ("unauthorized",)
    responses |= _errors(*errors, *_ALWAYS, *tokens, "internal", *(["not-ready"] if ready else []))
    return {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "parameters": [*(parameters or []), *([_IF_NONE_MATCH] if cached else []), _REQUEST_ID],
        "responses": responses,
    }


def _probe(name: str, summary: str, *, ready: bool = True) -> dict[str, Any]:
    operation = _get("operation", name, summary, {"text/plain": {"schema": {"type": "string"}}}, ready=False)
    if ready:
        operation["responses"] |= _errors("not-ready", "draining")
    return operation


def _errors(*codes: str) -> dict[str, Any]:
    """Responses by status; codes that share a status are listed in its description."""
    by_status: dict[int, list[tuple[str, str]]] = {}
    for problem in PROBLEMS.values():
        if problem.code in codes:
            by_status.setdefault(problem.status, []).append((problem.code, problem.title))
    return {
        str(status): {
            "description": "; ".join(f"{code}: {title}" for code, title in found) + ".",
            "headers": _headers("X-Request-ID", *(["Retry-After"] if status in (429, 503) else [])),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemModel"}}},
        }
        for status, found in by_status.items()
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
