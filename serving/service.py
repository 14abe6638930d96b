"""The BentoML service: `bentoml serve serving.service:AugmintService`, or `augmint serve BUNDLE…`.

BentoML starts the workers, shares the socket among them and builds the Bento and its container. The API stands in front
of BentoML's own routes as an ASGI middleware, its leanest supported interface, and answers every request. Access log,
metrics and tracing are the API's own, so BentoML's are off: they would cost more than the answer, and its metrics are
labelled with raw paths. See docs/decisions/0005-own-batcher.md.
"""

from __future__ import annotations

import os
import sys

import bentoml
from bentoml import server_context

from augmint.errors import AugmintError
from serving.api import Api
from serving.bundles import check_bundles
from serving.logs import log_as_json, log_to_stderr
from serving.middleware import ApiMiddleware, drain_on_signal, quiet_bentoml, with_cors
from serving.protocol import limit_connections
from serving.settings import Settings

try:
    SETTINGS = Settings.from_environment()
    # Now, while the working directory is BentoML's --working-dir or the Bento's own: it may change later.
    SETTINGS = SETTINGS.absolute()
    API = Api(SETTINGS)
except AugmintError as error:
    sys.exit(f"augmint: {error}")
quiet_bentoml()
if SETTINGS.log == "json":
    log_as_json()
limit_connections(SETTINGS.timeout_s)
# uvicorn would believe any process of this machine that claims another client with X-Forwarded-For.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")


@bentoml.service(
    workers=SETTINGS.workers,
    # BentoML's own deadline would end in a body that is not problem+json: ours comes first.
    traffic={"timeout": SETTINGS.timeout_s + 5},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": ".*"},
    **({"resources": {"gpu": SETTINGS.workers}} if SETTINGS.device.startswith("cuda") else {}),
)
class AugmintService:
    """Augmented image samples by class label: see / for a page to try it and /openapi.json for the API."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Once, before any worker starts: a bundle that is refused ends the service with one line."""
        try:
            check_bundles(SETTINGS)
        except AugmintError as error:
            sys.exit(f"augmint: {error}")

    @bentoml.on_startup
    async def start(self) -> None:
        log_to_stderr(SETTINGS.log)
        await API.start(server_context.worker_index)
        drain_on_signal(API)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await API.stop()

    async def __is_ready__(self) -> bool:
        return API.ready


# bentoml.service turns the class into a Service, which its annotations do not say.
AugmintService.add_asgi_middleware(ApiMiddleware, api=with_cors(API, SETTINGS.origins))  # type: ignore[attr-defined]
