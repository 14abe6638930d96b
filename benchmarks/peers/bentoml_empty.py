"""A BentoML service that does nothing: what any of its services needs to be ready.

bentoml serve benchmarks.peers.bentoml_empty:Empty
"""

import bentoml


@bentoml.service
class Empty:
    @bentoml.api
    def nothing(self) -> str:
        return ""
