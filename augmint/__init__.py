"""augmint: augmented image samples by class label, from GAN generators exported to ONNX.

    generator = augmint.Generator("bundles/digits")          # ONNX Runtime in this process
    client = augmint.Client("http://localhost:3000")         # the same methods, the same bytes, over HTTP
    samples = client.generate({"3": 200, "7": 50}, seed=1)   # uint8 images with their addresses
    balanced = augmint.balance("my-images", client, seed=7)  # real images first, then synthetic ones, and a mask

Importing this package loads neither torch, bentoml nor onnxruntime; and what it does load, only when it is used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from augmint.balancing import Balanced, Balancer, balance
    from augmint.client import AsyncClient, Client
    from augmint.critic import Critic
    from augmint.data import DataSet, load_data
    from augmint.errors import (
        AugmintError,
        BundleError,
        DataError,
        RequestError,
        ServiceError,
        ShortfallError,
        UnknownLabelError,
        UsageError,
    )
    from augmint.generator import Generator
    from augmint.quality import Quality
    from augmint.samples import BundleInfo, Samples, Source

__all__ = [
    "AsyncClient",
    "AugmintError",
    "Balanced",
    "Balancer",
    "BundleError",
    "BundleInfo",
    "Client",
    "Critic",
    "DataError",
    "DataSet",
    "Generator",
    "Quality",
    "RequestError",
    "Samples",
    "ServiceError",
    "ShortfallError",
    "Source",
    "UnknownLabelError",
    "UsageError",
    "__version__",
    "balance",
    "load_data",
]

# Eager imports would take 0.4 s (httpx2, pydantic, Pillow and numpy), in every worker and before every `--help`.
_HOMES = {
    "augmint.balancing": ("Balanced", "Balancer", "balance"),
    "augmint.client": ("AsyncClient", "Client"),
    "augmint.critic": ("Critic",),
    "augmint.data": ("DataSet", "load_data"),
    "augmint.errors": (
        "AugmintError",
        "BundleError",
        "DataError",
        "RequestError",
        "ServiceError",
        "ShortfallError",
        "UnknownLabelError",
        "UsageError",
    ),
    "augmint.generator": ("Generator",),
    "augmint.quality": ("Quality",),
    "augmint.samples": ("BundleInfo", "Samples", "Source"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

try:
    __version__ = version("augmint")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'augmint' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
