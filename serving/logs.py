"""The service's own log records, as text or as one JSON object a line.

Records of a request carry its `request_id` (and `traceparent`) as extras. A line for each request is another matter:
see accesslog.py.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ["JsonLines", "log_as_json", "log_to_stderr"]

_EXTRAS: Final = ("request_id", "traceparent")
# Loggers that BentoML gives handlers of their own.
_OTHERS: Final = ("bentoml", "circus", "uvicorn.error")


class JsonLines(logging.Formatter):
    """time (RFC 3339), level, logger, message, and where there are any: request_id, traceparent, exception."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _EXTRAS:
            if (value := getattr(record, name, None)) is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(form: str) -> None:
    """augmint's own records to stderr, each once, whatever BentoML did to the root logger.

    Args:
        form: "text" or "json".
    """
    logger = logging.getLogger("augmint")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        handler.setFormatter(JsonLines() if form == "json" else text)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # uvicorn prepares a line for each answer as long as any handler could take it; nobody does, the API has its own.
    logging.getLogger("uvicorn.access").propagate = False
    # BentoML gives it a handler, and its parent too: each line would come twice.
    logging.getLogger("uvicorn.error").propagate = form == "json"


def log_as_json() -> None:
    """What all others write to a log, too, on stderr: of this process, and after BentoML has set up its own logging."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers = [handler]
    for name in _OTHERS:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    logging.captureWarnings(True)
