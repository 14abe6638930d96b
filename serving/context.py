"""What the handlers share: settings, the door, and, once they are there, the open bundles and the maker of images."""

from __future__ import annotations

from dataclasses import dataclass, field

from augmint.errors import UnavailableError
from serving.access import Door
from serving.exchange import Route
from serving.jobrunner import JobRunner
from serving.jobs import JobStore
from serving.library import Library
from serving.maker import Maker
from serving.metrics import Metrics
from serving.settings import Settings

__all__ = ["Context"]


@dataclass(slots=True)
class Context:
    """One per process; `Api.start` fills it in.

    Attributes:
        settings: of the service.
        door: who may ask.
        opened: the bundles and the maker; None until every bundle has passed its golden test and is warm.
        metrics: the counters; None until the service starts.
        jobs: what is kept of jobs, and who works on them; None where there are none.
        failure: why it never became ready; for the log, since it may name paths.
        draining: the service is shutting down.
        routes: every address.
    """

    settings: Settings
    door: Door
    metrics: Metrics | None = None
    opened: tuple[Library, Maker] | None = None
    jobs: tuple[JobStore, JobRunner] | None = None
    failure: str = ""
    draining: bool = False
    routes: list[Route] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.opened is not None and not self.draining

    @property
    def library(self) -> Library:
        return self.require()[0]

    @property
    def maker(self) -> Maker:
        return self.require()[1]

    def require(self) -> tuple[Library, Maker]:
        """The bundles and the maker.

        Raises:
            UnavailableError: not yet, or never.
        """
        if self.opened is None:
            raise self.not_ready()
        return self.opened

    def check_ready(self) -> None:
        """For those who decide where requests go.

        Raises:
            UnavailableError: not yet, never, or not any more.
        """
        self.require()
        if self.draining:
            raise UnavailableError(
                "the service is shutting down: send requests to another one.", code="service.draining", retry_after=1.0
            )

    def not_ready(self) -> UnavailableError:
        # The failure's own sentence names a path of this machine: it is in the log.
        return UnavailableError(
            "the service could not open its bundles and never will: its log says why."
            if self.failure
            else "the service is still opening its bundles: try again shortly.",
            code="service.not-ready",
            retry_after=5.0,
        )
