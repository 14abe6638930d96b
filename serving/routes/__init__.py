"""The addresses of the API, by subject. Each module has a class of handlers, whose `routes` are its addresses with
what the OpenAPI document says of them. To add an address: a handler, a `Route`, and a line here if it is a new module.
"""

from __future__ import annotations

from serving.context import Context
from serving.exchange import Route
from serving.routes.addresses import Addresses
from serving.routes.catalogue import Catalogue
from serving.routes.generate import Generate
from serving.routes.jobs import Jobs
from serving.routes.mounted import Mounted
from serving.routes.oip import OpenInference
from serving.routes.operation import Operation
from serving.routes.streams import Streams

__all__ = ["all_routes"]

_SUBJECTS = (Generate, Streams, Jobs, Catalogue, Addresses, OpenInference, Operation, Mounted)


def all_routes(context: Context) -> list[Route]:
    return [route for subject in _SUBJECTS for route in subject(context).routes]
