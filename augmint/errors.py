"""Every error a user of augmint can meet, as one small tree.

AugmintError                      anything that augmint itself refuses or could not do
├── UsageError                    a flag or argument is wrong                         (exit 2)
├── DataError                     a data set cannot be read or cannot be used so
├── TrainingError                 training cannot start, go on, or be resumed
├── ExportError                   a run cannot become a bundle
│   └── GateError                 a check of the exported graph failed
├── BundleError                   a bundle was refused; `code` names the check that refused it
├── DeviceError                   the device that was asked for cannot be had
├── RequestError                  a request for samples is invalid
│   ├── UnknownLabelError         … names a class that the bundle does not have
│   ├── UnknownBundleError        … names a bundle that is not there
│   └── TooLargeError             … asks for more than the limit
├── ServiceError                  the service could not answer
│   ├── UnavailableError          … now: full, starting or draining; try again later
│   ├── DeadlineError             … in time
│   └── TransportError            … it could not be reached, or its answer arrived damaged
└── ShortfallError                fewer samples could be delivered than were asked for (exit 3)

The message is one sentence that names what was wrong and how to mend it: it is shown to people as it is.
`code` is a stable, lower-case word (``area.problem``) for programs. This module knows nothing of exit codes beyond
the number each class carries, nor of HTTP: `serving/` maps codes to statuses and `client.py` maps them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AugmintError",
    "BundleError",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "ExportError",
    "GateError",
    "RequestError",
    "ServiceError",
    "ShortfallError",
    "TooLargeError",
    "TrainingError",
    "TransportError",
    "UnavailableError",
    "UnknownBundleError",
    "UnknownLabelError",
    "UsageError",
]


class AugmintError(Exception):
    """Base of all errors raised on purpose. `str(error)` is the sentence for the user."""

    default_code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not unpickle by default, and ours cross process borders.
        return _rebuild, (type(self), str(self), dict(self.__dict__))


def _rebuild(cls: type[AugmintError], message: str, state: dict[str, object]) -> AugmintError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class UsageError(AugmintError):
    default_code = "usage"
    exit_code = 2


class DataError(AugmintError):
    default_code = "data"


class TrainingError(AugmintError):
    default_code = "training"


class ExportError(AugmintError):
    default_code = "export"


class GateError(ExportError):
    default_code = "export.gate"


class BundleError(AugmintError):
    default_code = "bundle"


class DeviceError(AugmintError):
    default_code = "device"


class RequestError(AugmintError):
    default_code = "request.invalid"
    exit_code = 2


class UnknownLabelError(RequestError):
    """`labels` are the names that would have been right, in the bundle's order."""

    default_code = "request.unknown-label"

    def __init__(self, message: str, *, labels: Sequence[str] = (), code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.labels = tuple(labels)


class UnknownBundleError(RequestError):
    """`bundles` are the names that would have been right."""

    default_code = "request.unknown-bundle"

    def __init__(self, message: str, *, bundles: Sequence[str] = (), code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.bundles = tuple(bundles)


class TooLargeError(RequestError):
    default_code = "request.too-large"


class ServiceError(AugmintError):
    """`status` is the HTTP status of the answer, or None where there was none."""

    default_code = "service"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message, code=code)
        self.status = status


class UnavailableError(ServiceError):
    """`retry_after` is the wait, in seconds, that the service asked for (None: it named none)."""

    default_code = "service.unavailable"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.retry_after = retry_after


class DeadlineError(ServiceError):
    default_code = "service.deadline"


class TransportError(ServiceError):
    default_code = "service.transport"


class ShortfallError(AugmintError):
    """`requested` and `delivered` are counts of images."""

    default_code = "shortfall"
    exit_code = 3

    def __init__(self, message: str, *, requested: int = 0, delivered: int = 0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.requested = requested
        self.delivered = delivered
