"""A bundle's critic, on its own: how real an image is, and which class it shows where the critic tells classes apart.

    critic = augmint.Critic("bundles/digits")
    critic.classify(images)  # ["3", "7", …]

Some families are trained for their critic (`sgan`: a classifier that learned from few labels). The critic runs in this
process, on the CPU. This module knows nothing of generating, nor of keeping the better images (`augmint.judge`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import read_bundle
from augmint.errors import BundleError, RequestError
from augmint.runtime import check_signature, open_session
from augmint.samples import label_numbers

__all__ = ["Critic"]

_BATCH: Final = 64


class Critic:
    """The critic of the bundle at `path`. May be shared by threads.

    Attributes:
        class_names: the classes that it tells apart, in the order of `class_logits`; () where it tells none.
        needs_labels: whether it judges an image as one of a class, and so must be told which.

    Raises:
        BundleError: the bundle is refused, or has no critic ("bundle.no-critic").
        DeviceError: onnxruntime is not there.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        files = read_bundle(path)
        self.manifest = files.manifest
        graph = self.manifest.critic
        if graph is None:
            raise BundleError(f"{files.path} has no critic: export a run that has one.", code="bundle.no-critic")
        opened = open_session(files.content[graph.file], device="cpu", threads=threads, optimisation=graph.optimisation)
        check_signature(opened, graph.inputs, graph.outputs, files.path / graph.file)
        self._session = opened.session
        self.class_names: tuple[str, ...] = self.manifest.critic_classes
        self.needs_labels = len(graph.inputs) > 1

    def realism(self, images: NDArray[np.uint8], labels: Sequence[str] | None = None) -> NDArray[np.float32]:
        """How real images uint8 [N, H, W, C] look, float32 [N]: the larger, the more; comparable within this bundle."""
        return self._run("realism", images, labels, ())

    def class_logits(self, images: NDArray[np.uint8], labels: Sequence[str] | None = None) -> NDArray[np.float32]:
        """float32 [N, K] of images uint8 [N, H, W, C], in the order of `class_names`."""
        if not self.class_names:
            raise RequestError(
                f"The critic of {self.manifest.identity.name} tells no classes apart: train one that does, with "
                "--family sgan.",
                code="request.no-classes",
            )
        return self._run("class_logits", images, labels, (len(self.class_names),))

    def classify(self, images: NDArray[np.uint8], labels: Sequence[str] | None = None) -> list[str]:
        """The most likely class of each of images uint8 [N, H, W, C]."""
        return [self.class_names[i] for i in self.class_logits(images, labels).argmax(1)]

    def _run(
        self, output: str, images: NDArray[np.uint8], labels: Sequence[str] | None, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.manifest.image.shape:
            raise RequestError(
                f"The critic takes images uint8 [N, {', '.join(map(str, self.manifest.image.shape))}], not "
                f"{images.dtype} {list(images.shape)}.",
                code="request.images",
            )
        feeds: dict[str, Any] = {"image": images}
        if self.needs_labels:
            feeds["label"] = self._numbers(labels, len(images))
        made = np.empty((len(images), *shape), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            (made[rows],) = self._session.run([output], {key: value[rows] for key, value in feeds.items()})
        return made

    def _numbers(self, labels: Sequence[str] | None, count: int) -> NDArray[np.int64]:
        if labels is None or len(labels) != count:
            raise RequestError(
                "This critic judges an image as one of a class: give a label for each image.", code="request.labels"
            )
        return label_numbers(labels, self.manifest.class_names)
