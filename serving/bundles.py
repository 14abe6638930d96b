"""Bundles opened for serving: verified, warmed, each with its lane in the engine.

Knows ONNX bundles and the engine's lanes, nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from augmint.bundle import BundleFiles, read_bundle
from augmint.generator import Generator
from augmint.latents import latents
from augmint.quality import Quality
from augmint.runtime import usable_cores
from augmint.samples import BundleInfo
from augmint.signing import read_trust
from serving.engine import Edits, Lane, Render, power_buckets
from serving.settings import Settings, find_bundles

__all__ = ["Served", "check_bundle", "check_bundles", "device_of_worker", "open_bundle", "open_bundles", "threads_for"]

log = logging.getLogger("augmint")

# On a GPU a session call's fixed cost is large and its memory plentiful.
GPU_BATCH: Final = 256
CPU_BATCH: Final = 64
# What a call costs besides the session: taking the rows, handing them out, waking the event loop.
_CALL_OVERHEAD_S: Final = 100e-6
_LONG_CALL_S: Final = 0.03


@dataclass(frozen=True, eq=False)
class Served:
    """One open bundle.

    Attributes:
        info: what it can make, and on what.
        files: the checked files.
        lane: its place in the engine.
        arithmetic: sha256 over ONNX Runtime's version and the golden samples as this machine makes them: machines that
            agree on it agree on every image, as far as can be told, so it stands in each ETag.
        judge: (images, labels, quality) -> why each is rejected; see `augmint.judge.Judge`.
        judging: the same as `arithmetic` for verdicts, "" where nothing can be judged.
    """

    info: BundleInfo
    files: BundleFiles
    lane: Lane
    arithmetic: str
    judge: Callable[[NDArray[np.uint8], NDArray[np.int64], Quality], NDArray[np.uint8]]
    judging: str

    def __str__(self) -> str:
        info = self.info
        exact = (
            "bit for bit as exported"
            if info.reproducibility == "exact"
            else f"within {info.tolerance} grey levels of what was exported"
        )
        shape = "×".join(map(str, info.image_shape))
        return (
            f"{info.name} ({info.family}, {info.digest[:12]}) on {info.device}: {len(info.class_names)} classes, "
            f"{shape} images, batches of up to {self.lane.batch}, {exact}"
        )


def check_bundle(path: Path, settings: Settings) -> BundleFiles:
    """All that can be checked without a session; and, where keys are to be trusted, that one of them signed it.

    Raises:
        BundleError: refused.
        UsageError: the file of keys cannot be read.
    """
    files = read_bundle(path)
    if settings.trust is not None:
        read_trust(settings.trust).check(files)
    return files


def check_bundles(settings: Settings) -> list[BundleFiles]:
    """All bundles that there are; raises as `check_bundle` does, or UsageError where there is none."""
    return [check_bundle(path, settings) for path in find_bundles(settings.bundles)]


def open_bundles(settings: Settings, worker: int | None = None) -> dict[Path, Served]:
    """Open, verify by golden samples and warm every bundle; path -> bundle, in the order given.

    Raises:
        UsageError, BundleError, DeviceError: see `check_bundles` and `augmint.Generator`.
    """
    return {files.path: open_bundle(files.path, settings, worker) for files in check_bundles(settings)}


def threads_for(bundles: Iterable[Served], settings: Settings) -> int:
    """Session calls at once: one on a GPU; on a CPU the cores that are this worker's share."""
    if settings.threads:
        return settings.threads
    if all(bundle.info.device != "cpu" for bundle in bundles):
        return 1
    return max(1, usable_cores() // settings.workers)


def device_of_worker(settings: Settings, worker: int | None, environment: Mapping[str, str] | None = None) -> str:
    """The device for a worker, counted from 1 as BentoML counts: with several, "cuda" gives each its own GPU in turn.

    "auto" and a named device are left alone: every worker then takes the same.
    """
    if settings.device != "cuda" or settings.workers < 2 or worker is None:
        return settings.device
    return f"cuda:{(worker - 1) % _visible_gpus(os.environ if environment is None else environment)}"


def _visible_gpus(environment: Mapping[str, str]) -> int:
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return max(1, len([part for part in listed.split(",") if part.strip()]))
    driver = Path("/proc/driver/nvidia/gpus")
    return max(1, len(list(driver.iterdir())) if driver.is_dir() else 1)


def open_bundle(path: Path, settings: Settings, worker: int | None = None) -> Served:
    """Open, verify by golden samples and warm a bundle; raises as `open_bundles` does."""
    # One thread a call: on two cores two such calls together beat one call of two threads by a quarter.
    generator = Generator(path, device=device_of_worker(settings, worker), threads=1, trust=settings.trust)
    info = generator.info()
    render = _renderer(generator)
    if info.device == "cpu":
        batch = settings.batch or preferred_batch(render)
        buckets: tuple[int, ...] = ()
    else:
        buckets = warm(render, settings.batch or GPU_BATCH, info.name)
        batch = buckets[-1]
    golden = generator.manifest.golden
    names = info.class_names or ("",)
    labels = np.array([names.index(row.label) for row in golden], dtype=np.int64)
    images = render(
        labels,
        np.array([row.seed for row in golden], dtype=np.uint64),
        np.array([row.index for row in golden], dtype=np.uint64),
        np.array([row.truncation for row in golden], dtype=np.float64),
        (),
    )
    import onnxruntime  # here, because augmint.runtime prepares its import

    arithmetic = hashlib.sha256(onnxruntime.__version__.encode() + images.tobytes()).hexdigest()
    lane = Lane(info.name, render, info.image_shape, batch=batch, buckets=buckets)
    several = min(batch, CPU_BATCH)
    lane.seconds_per_image = _call_seconds(render, several) / several
    # Opened now, so that a bundle with a bad classifier is refused before anybody asks for it.
    judging = ""
    if any(why == "" for why in info.quality.values()):
        judging = generator.the_judge().fingerprint(images, labels)
    return Served(info, generator.files, lane, arithmetic, generator.judge, judging)


def _renderer(generator: Generator) -> Render:
    dim = generator.manifest.sampling.latent_dim

    def render(
        labels: NDArray[np.int64],
        seeds: NDArray[np.uint64],
        indices: NDArray[np.uint64],
        truncation: NDArray[np.float64],
        edits: Edits,
    ) -> NDArray[np.uint8]:
        latent = latents(seeds, indices, dim, truncation)
        for start, stop, edit in edits:
            latent[start:stop] += generator.shift(edit)
        return generator.run(latent, labels)

    return render


def _render_some(render: Render, size: int) -> None:
    indices = np.arange(size, dtype=np.uint64)
    render(np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.uint64), indices, np.ones(size), ())


def _call_seconds(render: Render, size: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of a session call for so many images: the best of three."""
    times = []
    for _ in range(3):
        begun = clock()
        _render_some(render, size)
        times.append(clock() - begun)
    return min(times)


def warm(render: Render, batch: int, name: str) -> tuple[int, ...]:
    """The buckets up to `batch` that fit into memory, each run once: cuDNN plans at the first call of every size, which
    must not be while a client waits."""
    fit: list[int] = []
    for size in power_buckets(batch):
        try:
            _render_some(render, size)
        except Exception as error:  # what ONNX Runtime raises for want of memory has no class of its own
            if not fit:
                raise
            log.warning("%s cannot make %d images at once (%s): batches of up to %d", name, size, error, fit[-1])
            break
        fit.append(size)
    return tuple(fit)


def preferred_batch(render: Render) -> int:
    """The smallest batch that makes images nearly as fast as any: larger ones only make others wait longer.

    It is a matter of speed alone: the images are the same at every batch size. By CPU time, which others' load on the
    machine changes little: a call runs in the thread that makes it.
    """
    seconds: dict[int, float] = {}
    for size in power_buckets(CPU_BATCH):
        call = _call_seconds(render, size, time.thread_time)
        seconds[size] = (call + _CALL_OVERHEAD_S) / size
        if call > _LONG_CALL_S:
            break
    best = min(seconds.values())
    return next(size for size, pace in seconds.items() if pace <= 1.1 * best)
