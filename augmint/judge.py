"""The judge: whether an image is good enough, by the bundle's own classifier and critic.

Three measures, each of one image alone, with thresholds from the manifest:

    label     by how much the classifier prefers the class asked for (or log P - log p, where a probability is asked)
    realism   the critic's score, above the class's quantile over generated images at export
    copy      the distance to the nearest training image, in the classifier's features, above the 1 % quantile of what
              held-out real images have; only the features of the training images are in the bundle

Floating-point sums may come out differently in the last bits by batch size. Export checks that they do not on its own
machine; so that nothing depends on it elsewhere, whatever comes near a threshold is judged again alone, and that
decides. The networks run on the CPU, one thread a call: their verdicts do not depend on the generator's device.

This module knows nothing of requests: it is given images and says why each is rejected.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import BundleFiles, Graph
from augmint.errors import BundleError
from augmint.quality import REASONS, Quality
from augmint.runtime import check_signature, open_session

__all__ = ["Judge", "nearest"]

_BATCH: Final = 64
# Of the scale of each measure: what is nearer to its threshold than this is judged alone. Batches were seen to differ
# by nothing on x86, and single precision by some 1e-6.
_CLOSE: Final = 1e-3


class Judge:
    """Sessions and thresholds of one bundle. May be shared by threads.

    Args:
        files: of a bundle whose manifest has a `quality`.

    Raises:
        BundleError: a graph cannot be opened, or is not what the manifest says.
    """

    def __init__(self, files: BundleFiles) -> None:
        manifest = files.manifest
        parts = manifest.quality
        assert parts is not None, "only bundles that offer something are judged"
        self._conditional = bool(manifest.class_names)
        self._path = files.path
        self._classifier = _open(files, parts.classifier) if parts.classifier else None
        self._critic = _open(files, manifest.critic) if parts.realism and manifest.critic else None
        if parts.realism:
            self._table = files.realism_table().astype(np.float64)
            self._shares = np.array(parts.realism.shares)
            self._spread = np.maximum(self._table[:, -1] - self._table[:, 0], 1e-9)
        if parts.copies:
            self._train = files.train_features().astype(np.float32)
            self._train_squares = np.square(self._train).sum(1)
            self._too_near = parts.copies.threshold

    def __call__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], quality: Quality) -> NDArray[np.uint8]:
        """Judge images uint8 [N, H, W, C] that were asked for as the classes `labels` int64 [N] (0 if unconditional).

        Returns:
            uint8 [N]: 0 where the image is kept, else 1 + the position in `REASONS` of why it is rejected.
        """
        reasons = np.empty(len(images), dtype=np.uint8)
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            slack = self._slack(images[rows], labels[rows], quality)
            for i in np.flatnonzero((np.abs(slack) < _CLOSE).any(1)):
                alone = slice(start + int(i), start + int(i) + 1)
                slack[i] = self._slack(images[alone], labels[alone], quality)[0]
            failed = ~(slack >= 0)  # NaN too
            reasons[rows] = np.where(failed.any(1), failed.argmax(1) + 1, 0)
        return reasons

    def fingerprint(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
        """sha256 of all scores of some images, bit for bit: machines that agree on it agree on verdicts."""
        digest = hashlib.sha256()
        if self._classifier is not None:
            for scores in self._run(self._classifier, {"image": images}):
                digest.update(scores.tobytes())
        if self._critic is not None:
            digest.update(self._realism(images, labels).tobytes())
        return digest.hexdigest()

    def _slack(self, images: NDArray[np.uint8], labels: NDArray[np.int64], quality: Quality) -> NDArray[np.float64]:
        """[N, 3], in the order of `REASONS`: below 0 is rejected, infinite is not looked at; in units of its scale."""
        slack = np.full((len(images), len(REASONS)), np.inf)
        if quality.labels or quality.copies:
            assert self._classifier is not None, "checked against what the bundle offers"
            logits, features = self._run(self._classifier, {"image": images})
            if quality.labels:
                slack[:, 0] = _label_slack(logits.astype(np.float64), labels, quality.labels)
            if quality.copies:
                distances = nearest(features, self._train, self._train_squares)
                slack[:, 2] = (distances - self._too_near) / self._too_near
        if quality.realism:
            score = self._realism(images, labels).astype(np.float64)
            slack[:, 1] = (score - self._least_realism(quality.realism)[labels]) / self._spread[labels]
        return slack

    def _least_realism(self, share: float) -> NDArray[np.float64]:
        """[K], between the table's quantiles by straight lines."""
        right = int(np.searchsorted(self._shares, share, side="right").clip(1, len(self._shares) - 1))
        weight = (share - self._shares[right - 1]) / (self._shares[right] - self._shares[right - 1])
        between: NDArray[np.float64] = self._table[:, right - 1] * (1 - weight) + self._table[:, right] * weight
        return between

    def _realism(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float32]:
        feeds: dict[str, Any] = {"image": images} | ({"label": labels} if self._conditional else {})
        realism: NDArray[np.float32] = self._run(self._critic, feeds)[0]
        return realism

    def _run(self, session: Any, feeds: dict[str, Any]) -> list[NDArray[np.float32]]:
        try:
            return session.run(None, feeds)  # type: ignore[no-any-return]  # onnxruntime is untyped
        except Exception as error:  # whatever onnxruntime raises when a graph does not run
            raise BundleError(
                f"{self._path} has a classifier or critic that cannot be run ({str(error).splitlines()[0][:200]}): "
                "export the bundle again.",
                code="bundle.run",
            ) from error


def nearest(
    features: NDArray[np.float32], train: NDArray[np.float32], squares: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Euclidean distance from each row of [N, D] to the nearest row of [M, D]; `squares` are those of `train`, [M]."""
    squares = np.square(train).sum(1) if squares is None else squares
    least = np.square(features).sum(1) + (squares - 2 * (features @ train.T)).min(1)
    distances: NDArray[np.float64] = np.sqrt(np.maximum(least, 0).astype(np.float64))
    return distances


def _label_slack(logits: NDArray[np.float64], labels: NDArray[np.int64], wanted: bool | float) -> NDArray[np.float64]:
    rows = np.arange(len(logits))
    own = logits[rows, labels]
    if wanted is True:
        others = logits.copy()
        others[rows, labels] = -np.inf
        slack: NDArray[np.float64] = own - others.max(1)
    else:
        top = logits.max(1)
        slack = own - top - np.log(np.exp(logits - top[:, None]).sum(1)) - np.log(wanted)
    return slack


def _open(files: BundleFiles, graph: Graph) -> Any:
    session = open_session(files.content[graph.file], device="cpu", threads=1, optimisation=graph.optimisation)
    check_signature(session, graph.inputs, graph.outputs, files.path / graph.file)
    return session.session
