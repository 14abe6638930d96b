"""What every peer does alike: a session of one thread, latents from numpy, npy or PNG out.

Pillow writes the PNGs, at its fastest level; several of them come as a zip that is not deflated again.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.lib import format as npy_format
from PIL import Image

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST = 64
"""Images of one session call: more are no faster, and take more memory."""


class Generator:
    """The ONNX file of the environment variable PEER_MODEL."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            Path(os.environ["PEER_MODEL"]), options, providers=["CPUExecutionProvider"]
        )
        self._latent_dim = self._session.get_inputs()[0].shape[1]
        self._rng = np.random.default_rng()

    def images(self, n: int) -> np.ndarray:
        """uint8 [n, H, W, C] of latents that nobody asked for before."""
        latent = self._rng.standard_normal((n, self._latent_dim), dtype=np.float32)
        pieces = [self._session.run(None, {"latent": latent[i : i + MOST]})[0] for i in range(0, n, MOST)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def encode(images: np.ndarray, form: str) -> bytes:
    """npy, or one PNG, or a zip of several."""
    if form == "npy":
        head = io.BytesIO()
        npy_format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": images.shape})
        return head.getvalue() + images.tobytes()
    files = [png(image) for image in images]
    if len(files) == 1:
        return files[0]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i, file in enumerate(files):
            archive.writestr(f"{i}.png", file)
    return stream.getvalue()


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
