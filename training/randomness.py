"""Randomness without a state: every draw of step t is a pure function of (run seed, step, purpose, retry).

A training that keeps generators between steps must save and restore every one of them to go on where it stopped; the
well-known resumes that are not exact forget one. Here there is nothing to save: each step makes its generators anew
from a hash, so loading weights, optimisers and the step counter is enough to continue bit for bit.

`retry` counts the roll-backs of the run. After a step with a non-finite loss the same steps are taken again, and a new
salt keeps them from drawing the same batch and meeting the same NaN.

Draws are made on the CPU and moved to the device, so a seed means the same batches everywhere. Dropout alone draws on
the device, from torch's global generator, which the loop seeds at the start of each step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

__all__ = ["StepRandom", "seed_of"]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the text of `parts`; the same on every machine and Python."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class StepRandom:
    """All randomness of one training step."""

    seed: int
    step: int
    retry: int = 0

    def number(self, purpose: str) -> int:
        return seed_of(self.seed, self.step, self.retry, purpose)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator. Asking twice for one purpose gives the same numbers twice."""
        return torch.Generator().manual_seed(self.number(purpose))
