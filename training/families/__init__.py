"""The families of GANs that augmint trains: one file each, one line each.

To add one: write `training/families/<name>.py` (see `base.py` for what it declares, and `parts.py` for what families
share) and add its class below. The tests in `tests/training/test_families.py` run over this tuple, so a new family
inherits them.
"""

from __future__ import annotations

from typing import Any, Final

from augmint.errors import UsageError
from training.families.acgan import Acgan
from training.families.augment import Augment
from training.families.base import Family
from training.families.began import Began
from training.families.cgan import Cgan
from training.families.cnn import Cnn
from training.families.dcgan import Dcgan
from training.families.gan import Gan
from training.families.infogan import Infogan
from training.families.sgan import Sgan

__all__ = ["DEFAULT", "FAMILIES", "family"]

FAMILIES: Final[tuple[type[Family[Any]], ...]] = (
    Augment,
    Acgan,
    Began,
    Cgan,
    Cnn,
    Dcgan,
    Gan,
    Infogan,
    Sgan,
)
DEFAULT: Final = Augment.name


def family(name: str) -> type[Family[Any]]:
    """The family called `name`. Raises UsageError, with the names there are."""
    for candidate in FAMILIES:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in FAMILIES)
    raise UsageError(f"there is no family {name!r}: choose one of {names}.")
