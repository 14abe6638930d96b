"""What goes wrong, as RFC 9457 problem details: the one table from the errors' codes to HTTP statuses.

A problem's `code` is for programs and stays; its `detail` is one sentence for people, and never holds a path of this
machine or a stack trace.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

from augmint.errors import AugmintError, UnavailableError, UnknownBundleError, UnknownLabelError

__all__ = ["CONTENT_TYPE", "PROBLEMS", "Problem", "body_of", "problem_of", "retry_after_of"]

CONTENT_TYPE: Final = b"application/problem+json"


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    code: str
    title: str

    @property
    def type(self) -> str:
        """A URN, not an address: it names the problem, there is nothing to fetch."""
        return f"urn:augmint:problem:{self.code}"


# AugmintError.code -> what the client is told. Codes that are not here are our own fault.
PROBLEMS: Final[dict[str, Problem]] = {
    "service.unauthorized": Problem(401, "unauthorized", "The service asks for a token"),
    "service.forbidden": Problem(403, "forbidden", "The token does not allow this"),
    "request.malformed": Problem(400, "malformed", "The request is not what HTTP or JSON allow"),
    "request.not-found": Problem(404, "not-found", "There is nothing at this address"),
    "request.unknown-bundle": Problem(404, "unknown-bundle", "The service does not have this bundle"),
    "request.no-jobs": Problem(404, "no-jobs", "The service keeps no jobs"),
    "request.no-job": Problem(404, "no-job", "There is no such job"),
    "request.not-finished": Problem(409, "not-finished", "The job has no result"),
    "request.range": Problem(416, "range", "The result has no such bytes"),
    "request.method": Problem(405, "method-not-allowed", "This address does not take this method"),
    "request.not-acceptable": Problem(406, "not-acceptable", "No format that is accepted can be made"),
    "request.too-large": Problem(413, "too-many-images", "More images are asked for than one request may have"),
    "request.uri-too-long": Problem(414, "uri-too-long", "The address is too long"),
    "request.headers-too-large": Problem(431, "headers-too-large", "The request's headers are too long"),
    "service.host": Problem(421, "misdirected", "The service does not go by this name"),
    "request.body-too-large": Problem(413, "body-too-large", "The request's body is too long"),
    "request.media-type": Problem(415, "unsupported-media", "The request's body is of a type that is not read here"),
    "request.unknown-label": Problem(422, "unknown-label", "The bundle does not have this label"),
    "request.quality": Problem(422, "quality", "The bundle cannot judge this quality"),
    "request.edit": Problem(422, "edit", "The bundle cannot make this edit"),
    "request.invalid": Problem(422, "invalid", "The request asks for something that cannot be"),
    "service.rate": Problem(429, "rate", "This client asks for too many images a second"),
    "service.quota": Problem(429, "quota", "This token has had its images of the day"),
    "service.internal": Problem(500, "internal", "The service failed"),
    "service.queue-full": Problem(503, "queue-full", "Too many images are waiting to be made"),
    "service.storage": Problem(507, "storage", "The service has no room for results"),
    "service.not-ready": Problem(503, "not-ready", "The service is not ready"),
    "service.draining": Problem(503, "draining", "The service is shutting down"),
    "service.deadline": Problem(504, "deadline", "The images were not made in time"),
}
_INTERNAL: Final = PROBLEMS["service.internal"]


def problem_of(error: AugmintError) -> Problem:
    return PROBLEMS.get(error.code, _INTERNAL)


def body_of(error: AugmintError, request_id: str, *, inference: bool = False) -> bytes:
    """The problem+json document; unknown labels and bundles come with those that would have been right.

    Args:
        inference: the Open Inference Protocol's clients read `error` alone, so the detail stands there as well.
    """
    problem = problem_of(error)
    # An error that is not in the table was not written for the client's eyes.
    known = error.code in PROBLEMS
    document: dict[str, Any] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": str(error) if known else "the service failed: its log says why, under this request_id.",
        "code": problem.code,
        "request_id": request_id,
    }
    if inference:
        document["error"] = document["detail"]
    if isinstance(error, UnknownLabelError):
        document["labels"] = list(error.labels)
    if isinstance(error, UnknownBundleError):
        document["bundles"] = list(error.bundles)
    return json.dumps(document).encode("ascii")


def retry_after_of(error: AugmintError) -> bytes | None:
    """Whole seconds for Retry-After, at least 1: the header knows no fractions."""
    if not isinstance(error, UnavailableError) or error.retry_after is None:
        return None
    return str(max(1, min(math.ceil(error.retry_after), 3600))).encode()
