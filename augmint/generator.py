"""The local generator: a bundle, opened in this process.

`Generator` gives the same methods with the same arguments and the same bytes as `augmint.Client`. It may be shared by
threads, sent to other processes (it reopens there, and checks that it is still the same bundle) and survives a fork.

This module knows nothing of HTTP, batching or quotas: `run` is the one function that the service's engine calls.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augmint.bundle import BundleFiles, Manifest, read_bundle
from augmint.errors import BundleError, RequestError
from augmint.judge import Judge
from augmint.latent_space import Edit, check_edit, shift, slerp
from augmint.latents import latents
from augmint.quality import Quality
from augmint.runtime import check_signature, open_session
from augmint.samples import MAX_SEED, BundleInfo, Counts, Reproducibility, Request, Samples, label_numbers
from augmint.selection import Selection, Walk
from augmint.signing import read_trust

__all__ = ["Generator"]

# Past this many images one session call gains nothing on a CPU and only holds memory.
_BATCH = 64
_CANDIDATES = 512  # made and judged before those that are kept are set aside: bounds the memory for the others


class Generator:
    """Open a bundle, verify it whole, and generate images from addresses.

    Args:
        path: the bundle's directory.
        device: "auto", "cpu", "cuda" or "cuda:N"; `info().device` says which it got.
        threads: CPU threads of one run; None takes all usable cores. The images do not depend on it.
        trust: a file of public keys (`augmint key` makes them), one of which must have signed the bundle; None: the
            bundle need not be signed.

    Raises:
        BundleError: the bundle was refused; `code` names the check.
        DeviceError: the device cannot be had.

    Example::

        generator = augmint.Generator("bundles/digits")
        samples = generator.generate({"3": 200, "7": 50}, seed=1)
        samples.images.shape  # (250, 28, 28, 1), uint8
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        trust: str | os.PathLike[str] | None = None,
    ) -> None:
        self._path = Path(path)
        self._absolute = self._path.resolve()  # now: the working directory may change before it is sent elsewhere
        self._device = device
        self._threads = threads
        self._trust = None if trust is None else Path(trust).resolve()
        self._lock = threading.Lock()
        self._judge: Judge | None = None
        self._judge_pid = 0
        self._open()

    # ------------------------------------------------------------------------------------------ what it is

    @property
    def manifest(self) -> Manifest:
        return self._files.manifest

    @property
    def digest(self) -> str:
        """sha256 of the manifest, 64 hex digits."""
        return self._files.digest

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the generator's integers; empty when unconditional."""
        return self.manifest.class_names

    @property
    def files(self) -> BundleFiles:
        """The checked files, e.g. the sample sheet: `files.content["samples.png"]`."""
        return self._files

    @property
    def remark(self) -> str:
        """Why "auto" chose the CPU, or ""."""
        return self._session.remark

    def info(self) -> BundleInfo:
        manifest = self.manifest
        return BundleInfo(
            name=manifest.identity.name,
            digest=self.digest,
            family=manifest.architecture.family,
            class_names=manifest.class_names,
            image_shape=manifest.image.shape,
            latent_dim=manifest.sampling.latent_dim,
            reproducibility=self._reproducibility,
            tolerance=0 if self._reproducibility == "exact" else manifest.sampling.tolerance,
            device=self._session.device,
            quality=manifest.offers,
            edits=manifest.editable,
        )

    def __repr__(self) -> str:
        return f"Generator({str(self._path)!r}, device={self._session.device!r}, digest={self.digest[:12]!r})"

    # ------------------------------------------------------------------------------------------ generating

    def generate(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
    ) -> Samples:
        """All images of a request at once.

        Args:
            counts: {"label": n, …}, or n for an unconditional bundle.
            seed: 0 … 2^64 - 1; None picks one, which `Samples.seeds` holds.
            offset: index of the first image of each class: 200 more are `offset=200`.
            truncation: share of the latent's central mass to draw from, in (0, 1].
            quality: which images to keep, such as "labels,realism:0.2"; see `augmint.quality`. More are made until
                there are enough, up to 20 times as many and 64; then there are fewer, which `Samples.missing` says.
            edit: attribute → amount, such as {"slant": 1.5}: how many standard deviations of the attribute, as the
                direction fitted at export predicts. `info().edits` has the attributes and their largest amounts.

        Raises:
            RequestError: see `augmint.samples.Request.make`.
        """
        request = self.request(counts, seed=seed, offset=offset, truncation=truncation, quality=quality, edit=edit)
        return self._select(request) if request.quality else self._answer(request, 0, request.total)

    def stream(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
        chunk: int = 256,
    ) -> Iterator[Samples]:
        """The images of `generate`, in the same order, at most `chunk` at a time: memory stays flat.

        Under a quality, a part may have no images at all, and only account for those that were rejected.
        """
        if chunk < 1:
            raise RequestError("chunk must be at least 1.")
        request = self.request(counts, seed=seed, offset=offset, truncation=truncation, quality=quality, edit=edit)
        if request.quality:
            return self._walk(request, chunk)
        return (self._answer(request, start, start + chunk) for start in range(0, request.total, chunk))

    def request(
        self,
        counts: Counts,
        *,
        seed: int | None = None,
        offset: int = 0,
        truncation: float = 1.0,
        quality: str | Quality = "none",
        edit: Mapping[str, float] | None = None,
    ) -> Request:
        """Check a request against this bundle, and fix its seed."""
        return Request.make(
            counts,
            self.class_names,
            seed=seed,
            offset=offset,
            truncation=truncation,
            quality=quality,
            offered=self.manifest.offers,
            edit=edit,
            editable=self.manifest.editable,
        )

    def judge(self, images: NDArray[np.uint8], labels: NDArray[np.int64], quality: Quality) -> NDArray[np.uint8]:
        """Why each image would be rejected, uint8 [N]: 0 for none; see `augmint.judge.Judge`."""
        return self.the_judge()(images, labels, quality)

    def render(
        self,
        labels: ArrayLike,
        seeds: ArrayLike,
        indices: ArrayLike,
        truncation: ArrayLike = 1.0,
        *,
        edit: Edit = (),
    ) -> NDArray[np.uint8]:
        """Images of any mixture of addresses; each row depends on nothing but its own address.

        Args:
            labels: int64 [N], indices into `class_names` (ignored, but of that length, when unconditional).
            seeds: uint64 [N] or a scalar.
            indices: uint64 [N].
            truncation: float [N] or a scalar, in (0, 1].
            edit: of all rows; as `Request.edit` has it.

        Returns:
            uint8 [N, H, W, C].
        """
        label = np.ascontiguousarray(labels, dtype=np.int64)
        n = label.shape[0]
        # ONNX Runtime takes -1 for the last class without a word, and fails a whole batch on one label too many.
        if self.class_names and n and not (label.min() >= 0 and label.max() < len(self.class_names)):
            raise RequestError(f"labels must be in 0 … {len(self.class_names) - 1}.")
        seed = np.broadcast_to(np.asarray(seeds, dtype=np.uint64), (n,))
        index = np.broadcast_to(np.asarray(indices, dtype=np.uint64), (n,))
        share = np.broadcast_to(np.asarray(truncation, dtype=np.float64), (n,))
        images = np.empty((n, *self.manifest.image.shape), dtype=np.uint8)
        step = self.shift(edit)
        for start in range(0, n, _BATCH):
            rows = slice(start, start + _BATCH)
            latent = latents(seed[rows], index[rows], self.manifest.sampling.latent_dim, share[rows])
            images[rows] = self.run(latent + step if edit else latent, label[rows])
        return images

    # ------------------------------------------------------------------------------------------ latent space

    def latents(
        self,
        indices: ArrayLike,
        *,
        seed: int,
        truncation: float = 1.0,
        edit: Mapping[str, float] | None = None,
    ) -> NDArray[np.float32]:
        """The latents of addresses, float32 [N, Z], whatever their label: for arithmetic, see `augmint.latent_space`.

        Args:
            indices: uint64 [N].
            seed, truncation, edit: as of `generate`.
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
            raise RequestError("seed must be a whole number from 0 to 2^64 - 1.")
        if not 0 < truncation <= 1:
            raise RequestError(f"truncation must be in (0, 1], not {truncation}.")
        step = check_edit(edit, self.manifest.editable)
        latent = latents(np.uint64(seed), indices, self.manifest.sampling.latent_dim, truncation)
        return latent + self.shift(step) if step else latent

    def from_latents(self, latents: ArrayLike, labels: str | Sequence[str] = "") -> NDArray[np.uint8]:
        """Images of latents of one's own making, uint8 [N, H, W, C]; each row depends on nothing but itself.

        Args:
            latents: float [N, Z], or [Z] for one; single precision is all that counts.
            labels: of each row, or one for all; "" for an unconditional bundle.

        Raises:
            RequestError: wrong shapes, numbers that are not finite, or a label that is not there.
        """
        latent = np.ascontiguousarray(np.atleast_2d(np.asarray(latents, dtype=np.float32)))
        dim = self.manifest.sampling.latent_dim
        if latent.ndim != 2 or latent.shape[1] != dim or not np.isfinite(latent).all():
            raise RequestError(f"latents must be finite numbers of shape [N, {dim}], not {list(latent.shape)}.")
        wanted = [labels] * len(latent) if isinstance(labels, str) else list(labels)
        if len(wanted) != len(latent):
            raise RequestError(f"there are {len(latent)} latents and {len(wanted)} labels: give one for each.")
        numbers = label_numbers(wanted, self.class_names)
        parts = [slice(start, start + _BATCH) for start in range(0, len(latent), _BATCH)]
        images = [self.run(latent[rows], numbers[rows]) for rows in parts]
        return np.concatenate([np.empty((0, *self.manifest.image.shape), dtype=np.uint8), *images])

    def interpolate(
        self, label: str = "", *, seed: int, a: int, b: int, steps: int = 9, truncation: float = 1.0
    ) -> NDArray[np.uint8]:
        """From image `a` of a label to image `b`, uint8 [steps, H, W, C]; the first and the last are those very images.

        Args:
            label: "" for an unconditional bundle.
            seed: of both.
            a, b: indices.
            steps: images, the two ends included; at least 2.
            truncation: of both ends; what is between them lies on the arc (`augmint.latent_space.slerp`).
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise RequestError("steps must be a whole number, at least 2: the two ends are among them.")
        ends = self.latents([a, b], seed=seed, truncation=truncation)
        return self.from_latents(slerp(ends[0], ends[1], np.linspace(0, 1, steps)), label)

    def shift(self, edit: Edit) -> NDArray[np.float32]:
        """What an edit adds to every latent, float32 [Z]."""
        return shift(self._directions, edit, self.manifest.sampling.latent_dim)

    def run(self, latent: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.uint8]:
        """One session call: latent float32 [N, Z] and label int64 [N] -> uint8 [N, H, W, C]."""
        feeds: dict[str, Any] = {"latent": latent}
        if self.class_names:
            feeds["label"] = label
        (image,) = self._current_session().run(None, feeds)
        return image  # type: ignore[no-any-return]  # onnxruntime is untyped

    def _answer(self, request: Request, start: int, stop: int) -> Samples:
        labels, indices = request.addresses(start, stop)
        names = self.class_names or ("",)
        ids, asked = np.unique(labels, return_counts=True)
        requested = {names[i]: int(n) for i, n in zip(ids, asked, strict=True)}
        return Samples(
            images=self.render(labels, np.uint64(request.seed), indices, request.truncation, edit=request.edit),
            labels=labels,
            seeds=np.full(len(labels), request.seed, dtype=np.uint64),
            indices=indices,
            class_names=self.class_names,
            bundle=self.digest,
            reproducibility=self._reproducibility,
            truncation=request.truncation,
            # In the request's order, so that a chunked answer adds up to the whole one.
            requested={label: requested[label] for label, _ in request.counts if label in requested},
            edit=dict(request.edit),
        )

    def _walk(self, request: Request, chunk: int) -> Iterator[Samples]:
        walk = Walk(request)
        while (piece := walk.piece(chunk)) is not None:
            yield walk.advance(piece, self._select(piece))

    def _select(self, request: Request) -> Samples:
        selection = Selection(request)
        while (candidates := selection.next(_CANDIDATES)) is not None:
            labels, indices = candidates.addresses()
            images = self.render(labels, np.uint64(request.seed), indices, request.truncation, edit=request.edit)
            selection.add(candidates, images, self.judge(images, labels, request.quality))
        return selection.samples(self.info())

    # ------------------------------------------------------------------------------------------ opening

    def the_judge(self) -> Judge:
        """The bundle's judge, opened when it is first needed."""
        with self._lock:
            # As of the session: a forked child opens its own.
            if self._judge is None or self._judge_pid != os.getpid():
                self._judge, self._judge_pid = Judge(self._files), os.getpid()
            return self._judge

    def _open(self) -> None:
        files = read_bundle(self._path)
        if self._trust is not None:
            read_trust(self._trust).check(files)
        graph = files.manifest.generator
        session = open_session(
            files.content[graph.file], device=self._device, threads=self._threads, optimisation=graph.optimisation
        )
        check_signature(session, graph.inputs, graph.outputs, self._path / graph.file)
        self._files, self._session, self._pid = files, session, os.getpid()
        self._directions = files.directions()
        self._reproducibility: Reproducibility = self._self_test()

    def _self_test(self) -> Reproducibility:
        """Reproduce the golden samples: byte for byte, within the tolerance, or not at all."""
        golden, manifest = self.manifest.golden, self.manifest
        names = self.class_names or ("",)
        try:
            images = self.render(
                [names.index(row.label) for row in golden],
                [row.seed for row in golden],
                [row.index for row in golden],
                [row.truncation for row in golden],
            )
        except RequestError:
            raise
        except Exception as error:  # whatever onnxruntime raises when a graph does not run
            raise BundleError(
                f"{self._path / manifest.generator.file} cannot be run ({str(error).splitlines()[0][:200]}): "
                "export the bundle again.",
                code="bundle.run",
            ) from error
        expected = self.files.golden_images()
        if np.array_equal(images, expected) and self._alike_alone(images):
            return "exact"
        worst = int(np.abs(images.astype(np.int16) - expected).max())
        if worst > manifest.sampling.tolerance:
            raise BundleError(
                f"{self._path} does not reproduce its golden samples (off by {worst} grey levels, "
                f"{manifest.sampling.tolerance} allowed): export it again, or update onnxruntime.",
                code="bundle.golden-mismatch",
            )
        return "tolerance"

    def _alike_alone(self, images: NDArray[np.uint8]) -> bool:
        """Whether the first golden samples come out the same one by one: "exact" is a promise about every batch size.

        Half precision never promises it: which kernels a batch gets depends on its size.
        """
        if self.manifest.generator.precision != "fp32":
            return False
        names = self.class_names or ("",)
        return all(
            np.array_equal(self.render([names.index(row.label)], [row.seed], [row.index], row.truncation)[0], images[i])
            for i, row in enumerate(self.manifest.golden[:8])
        )

    def _current_session(self) -> Any:
        # A forked child inherits the session's memory but not its threads: a run there would wait for ever.
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    graph = self.manifest.generator
                    self._session = open_session(
                        self._files.content[graph.file],
                        device=self._device,
                        threads=self._threads,
                        optimisation=graph.optimisation,
                    )
                    self._pid = os.getpid()
        return self._session.session

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": str(self._absolute),
            "device": self._device,
            "threads": self._threads,
            "trust": self._trust,
            "digest": self.digest,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["path"], device=state["device"], threads=state["threads"], trust=state["trust"]
        )
        if self.digest != state["digest"]:
            raise BundleError(
                f"{self._path} changed since this generator was sent here: open it again.", code="bundle.changed"
            )
