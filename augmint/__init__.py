"""augmint: augmented image samples by class label, from GAN generators exported to ONNX.

    generator = augmint.Generator("bundles/digits")          # ONNX Runtime in this process
    client = augmint.Client("http://localhost:3000")         # the same methods, the same bytes, over HTTP
    samples = client.generate({"3": 200, "7": 50}, seed=1)   # uint8 images with their addresses

Importing this package loads neither torch, bentoml nor onnxruntime.
"""

from importlib.metadata import PackageNotFoundError, version

from augmint.errors import AugmintError
from augmint.generator import Generator
from augmint.samples import BundleInfo, Samples, Source

__all__ = ["AugmintError", "BundleInfo", "Generator", "Samples", "Source", "__version__"]

try:
    __version__ = version("augmint")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
