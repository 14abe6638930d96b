"""What there is: the bundles, one bundle, its sheet of samples, its report."""

from __future__ import annotations

from typing import Final

from augmint.bundle import REPORT_PAGE
from augmint.errors import RequestError
from serving import openapi, page
from serving.context import Context
from serving.exchange import JSON, Answer, Exchange, Route, cacheable, to_json
from serving.schema import BundleModel

__all__ = ["Catalogue"]


class Catalogue:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.routes = [
            Route("GET", "/v1/bundles", self._list, _LIST),
            Route("GET", "/v1/bundles/{bundle}", self._detail, _DETAIL),
            Route("GET", "/v1/bundles/{bundle}/samples.png", self._sheet, _SHEET),
            Route("GET", "/v1/bundles/{bundle}/report", self._report, _REPORT),
        ]

    async def _list(self, exchange: Exchange) -> Answer:
        settings, library = self._context.settings, self._context.library
        listing = {
            "bundles": [BundleModel.of(served.info, library.is_latest(served)) for served in library],
            "limits": {
                "images": settings.max_images,
                "queue_images": settings.queue_images,
                "body_bytes": settings.max_body,
                "seconds": settings.timeout_s,
            },
        }
        return cacheable(exchange, JSON, to_json(listing))

    async def _detail(self, exchange: Exchange) -> Answer:
        library = self._context.library
        served = library.find(exchange.params["bundle"])
        manifest = served.files.manifest
        detail = {
            **BundleModel.of(served.info, library.is_latest(served)),
            "parameters": manifest.architecture.parameters,
            "trained": manifest.identity.trained,
            "licence": manifest.identity.licence,
            "augmint_version": manifest.identity.augmint_version,
            "train_counts": manifest.data.class_counts,
            "metrics": [metric.model_dump() for metric in manifest.evidence.metrics],
            "directions": [edit.model_dump() for edit in manifest.edits.attributes] if manifest.edits else [],
            "utility": manifest.evidence.utility and manifest.evidence.utility.model_dump(),
            "report": REPORT_PAGE in served.files.content,
            "warnings": list(manifest.evidence.warnings),
        }
        return cacheable(exchange, JSON, to_json(detail))

    async def _sheet(self, exchange: Exchange) -> Answer:
        sheet = self._context.library.find(exchange.params["bundle"]).files.content.get("samples.png")
        if sheet is None:
            raise RequestError("this bundle has no sheet of samples.", code="request.not-found")
        return cacheable(exchange, b"image/png", sheet)

    async def _report(self, exchange: Exchange) -> Answer:
        report = self._context.library.find(exchange.params["bundle"]).files.content.get(REPORT_PAGE)
        if report is None:
            raise RequestError(
                "this bundle was not evaluated: export it with --evaluate for a report.", code="request.not-found"
            )
        answer = cacheable(exchange, b"text/html; charset=utf-8", report)
        answer.headers += [(b"content-security-policy", page.REPORT_POLICY), (b"referrer-policy", b"no-referrer")]
        return answer


_LIST: Final = openapi.operation(
    "bundles", "listBundles", "The bundles and the limits.", content=openapi.json_of("BundleList"), cached=True
)
_DETAIL: Final = openapi.operation(
    "bundles",
    "getBundle",
    "One bundle: what it makes, where it comes from, what was measured.",
    parameters=[openapi.BUNDLE],
    content=openapi.json_of("BundleDetail"),
    cached=True,
    errors=("unknown-bundle",),
)
_SHEET: Final = openapi.operation(
    "bundles",
    "getSampleSheet",
    "A sheet of samples, made at export.",
    parameters=[openapi.BUNDLE],
    content={"image/png": {}},
    cached=True,
    errors=("unknown-bundle", "not-found"),
)
_REPORT: Final = openapi.operation(
    "bundles",
    "getReport",
    "The evaluation's page, made at export: whether the images help a classifier.",
    parameters=[openapi.BUNDLE],
    content={"text/html": {}},
    cached=True,
    errors=("unknown-bundle", "not-found"),
)
