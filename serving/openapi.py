"""The OpenAPI 3.1 document of the API: schemas from the pydantic models, operations from the routes that have them.

`operation` makes what a route says of itself: what it returns, which problems it may answer. The parts that several
routes share stand here. A test validates the document and asks every address for what it promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import models_json_schema

from augmint import __version__
from serving.problems import PROBLEMS
from serving.schema import MODELS_IN, MODELS_OUT

if TYPE_CHECKING:
    from serving.exchange import Route

__all__ = [
    "ABOUT",
    "ACCEPT",
    "ASKED",
    "BODY",
    "BUNDLE",
    "HEADERS",
    "JSON_LENGTH",
    "JUDGED",
    "LATE",
    "MADE",
    "body",
    "document",
    "header",
    "json_of",
    "operation",
    "option",
    "part",
]

Json = dict[str, Any]

JSON_LENGTH: Final = "Inference-Header-Content-Length"
HEADERS: Final[dict[str, tuple[str, str]]] = {
    "Augmint-Requested": ("integer", "images asked for"),
    "Augmint-Delivered": ("integer", "images in this answer"),
    "Augmint-Quality": ("string", "which images were kept; only where not all were"),
    "Augmint-Generated": ("integer", "images made, those rejected included; only under a quality"),
    "Augmint-Rejected": ("string", "label=N, realism=N, copy=N: images rejected, by reason; only under a quality"),
    "Augmint-Bundle": ("string", "the bundle's digest"),
    "Augmint-Seed": ("string", "the seed, also where the service chose it"),
    "Augmint-Reproducibility": ("string", "exact or tolerance"),
    JSON_LENGTH: ("string", "how many bytes of the body are JSON, where images follow"),
    "Location": ("string", "the job's address"),
    "Content-Range": ("string", "which bytes of the whole these are"),
    "Repr-Digest": ("string", "sha-256 of the body (RFC 9530)"),
    "ETag": ("string", "only where the request named a seed"),
    "X-Request-ID": ("string", "the request's id"),
    "Retry-After": ("integer", "seconds to wait before trying again"),
    "WWW-Authenticate": ("string", "what kind of token is asked for"),
    "Allow": ("string", "the methods that this address takes"),
}
ABOUT: Final = ("Augmint-Requested", "Augmint-Bundle", "Augmint-Seed", "Augmint-Reproducibility")
"""Headers of images, however many."""
MADE: Final = (*ABOUT, "Augmint-Delivered", "Repr-Digest")
"""Headers of images."""
JUDGED: Final = ("Augmint-Quality", "Augmint-Generated", "Augmint-Rejected")
"""Headers of images under a quality."""

BODY: Final = ("malformed", "body-too-large", "unsupported-media")
"""Problems of whatever has a body."""
ASKED: Final = ("unknown-bundle", "unknown-label", "edit", "invalid", "too-many-images", "rate", "quota")
"""Problems of whatever asks for images."""
LATE: Final = ("queue-full", "draining", "deadline")
"""Problems of whatever waits for images."""
_ALWAYS: Final = ("malformed", "misdirected", "uri-too-long", "headers-too-large", "unauthorized", "internal")


def part(name: str, description: str, pattern: str | None = None) -> Json:
    """A parameter in the path, and the regular expression that it matches."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": _text(pattern)}


def option(name: str, description: str, pattern: str | None = None) -> Json:
    """A parameter in the query."""
    return {"name": name, "in": "query", "description": description, "schema": _text(pattern)}


def header(name: str, description: str, pattern: str | None = None) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": _text(pattern)}


def _text(pattern: str | None) -> Json:
    return {"type": "string", **({} if pattern is None else {"pattern": pattern})}


BUNDLE: Final = part("bundle", "a bundle's name (its newest version), name@DIGEST (8 hex digits or more), or digest")
ACCEPT: Final = header("Accept", "media ranges with q-values; `format` in the body goes before it")
_IF_NONE_MATCH: Final = header("If-None-Match", "ETags that the client has")
_TIMEOUT: Final = header(
    "X-Request-Timeout-Ms",
    "milliseconds after which the client no longer waits: 504, if the service's own come later",
    "^[0-9]{1,9}$",
)
_REQUEST_ID: Final = header(
    "X-Request-ID", "returned and logged; one is made where it is missing or not 1 … 128 of A-Za-z0-9._~:+/=@-"
)


def body(model: str) -> Json:
    """A request's body as JSON."""
    return {"required": True, "content": json_of(model)}


def json_of(model: str) -> Json:
    """Content of a body that is JSON."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}


def operation(
    tag: str,
    name: str,
    summary: str,
    *,
    content: Json,
    description: str = "",
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    found: str = "Found.",
    headers: Sequence[str] = (),
    errors: Sequence[str] = (),
    cached: bool = False,
    free: bool = False,
    status: int = 200,
) -> Json:
    """An operation object.

    Args:
        tag: images, jobs, bundles, inference or operation.
        name: its operationId.
        content: of the answer, by media type.
        found: of the answer, in words.
        headers: of the answer, besides X-Request-ID; names in `HEADERS`.
        errors: codes of the problems that it may answer, besides those of every address.
        cached: has an ETag and honours If-None-Match.
        free: needs neither a token's scope nor open bundles.
        status: of the answer.
    """
    tags = ("ETag",) if cached else ()
    made: Json = {"description": found, "headers": _headers("X-Request-ID", *headers, *tags)}
    if content:
        made["content"] = content
    responses: Json = {str(status): made}
    if cached:
        about = [header for header in ABOUT if header in headers]
        responses["304"] = {
            "description": "The client has it already.",
            "headers": _headers("X-Request-ID", *about, "ETag"),
        }
    responses |= _errors(*errors, *_ALWAYS, *(() if free else ("forbidden", "not-ready")))
    conditional = [_IF_NONE_MATCH] if cached else []
    made = {
        "tags": [tag],
        "operationId": name,
        "summary": summary,
        "parameters": [*parameters, *conditional, _TIMEOUT, _REQUEST_ID],
        "responses": responses,
    }
    if description:
        made["description"] = description
    if body is not None:
        made["requestBody"] = body
    return made


def document(routes: Sequence[Route]) -> Json:
    """The whole document."""
    models = [(model, "validation") for model in MODELS_IN] + [(model, "serialization") for model in MODELS_OUT]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = route.operation
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
            {"name": "jobs", "description": "Generating what is too large to wait for."},
            {"name": "bundles", "description": "What can be generated."},
            {"name": "inference", "description": "The same by the Open Inference Protocol v2."},
            {"name": "operation", "description": "For those who run the service."},
        ],
        "paths": paths,
        # Where the service was given tokens.
        "security": [{}, {"token": []}],
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by `augmint token`; scopes: "
                    "generate for everything under /v1 and /v2, admin for /metrics",
                }
            },
            "schemas": schemas["$defs"],
            "headers": {
                name: {"description": text, "schema": {"type": kind}} for name, (kind, text) in HEADERS.items()
            },
        },
    }


def _errors(*codes: str) -> Json:
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


def _headers(*names: str) -> Mapping[str, Json]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
