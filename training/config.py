"""What a training was asked for, and what that came to.

`TrainRequest` is the command line as a dataclass: it may leave things open ("10 minutes", "auto"). `TrainConfig` is the
same with every choice made: it lies in the run directory as config.json, and together with the data set it determines a
training on the CPU bit for bit. Both are plain frozen dataclasses; this module knows nothing of how to make the choices
(`training/api.py`, `training/probe.py`) nor of training itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError

from augmint.data import DataSet
from augmint.errors import TrainingError, UsageError
from training.families import DEFAULT, family
from training.families.base import Count, Family, FamilyOptions

__all__ = ["PAPER", "Device", "Precision", "TrainConfig", "TrainRequest", "options_from", "parse_resolution"]

SCHEMA: Final = 1
UNLABELLED: Final = ("unlabelled", "unlabeled")
"""Classes that are none, for families whose critic learns from labelled and unlabelled images together."""
PAPER: Final = "paper"
"""The preset that every family has: its defaults."""
Device = Literal["cpu", "cuda"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train, as a user says it.

    Attributes:
        data: a folder, CSV, npz or built-in name, or a data set already read.
        out: the run directory to make; None picks `runs/<data>-<family>-<n>`.
        minutes: a budget of wall time, from which steps (and width) are fitted after a probe of the machine.
        steps: generator steps; a run given in steps is reproducible from its command line. Not both.
        resolution: "32" or "HxW", pixels; None takes the data's own size.
        resize: how images of another shape are brought there: "fit", "crop" or "stretch".
        ignore_labels: train without classes although the data have them.
        settings: the family's options by name, as text or as values; `--set key=value`.
        preset: a family's named set of options; None or "paper" takes the paper's.
        batch: images a step; None takes the family's.
        checkpoint_every: steps between checkpoints; None fits about 15 seconds.
        precision, threads: None lets the probe choose (with `minutes`) or takes "32-true" and 1.
    """

    data: str | Path | DataSet
    family: str = DEFAULT
    out: str | Path | None = None
    minutes: float | None = None
    steps: int | None = None
    resolution: str | int | None = None
    resize: str = "fit"
    seed: int = 0
    device: str = "auto"
    preset: str | None = None
    batch: int | None = None
    ignore_labels: bool = False
    skip_bad: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    checkpoint_every: int | None = None
    evaluate_every: int | None = None
    precision: str | None = None
    threads: int | None = None
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training with every choice made; `config.json` of its run directory.

    `image_shape` is (height, width, channels). `class_counts` counts training images, in the order of `class_names`.
    `conditional` says whether the generator takes labels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    schema: Literal[1] = 1
    made_with: str
    # The data, so that a resume and an export can tell whether it is still the same.
    data: str
    data_name: str
    data_fingerprint: str
    skip_bad: bool
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    image_shape: tuple[Count, Count, Count]
    resize: str
    # The recipe.
    family: str
    # Its type depends on the family, so `from_json` checks it.
    options: Annotated[FamilyOptions, PlainValidator(lambda value: value)]
    conditional: bool
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    steps: Count
    minutes: float | None
    # The machine.
    device: Device
    precision: Precision
    threads: Count
    channels_last: bool
    # The cadence, in steps.
    log_every: Count
    evaluate_every: Count
    score_images: Count
    """Fakes that an evaluation draws, in all classes together."""
    checkpoint_every: Count
    tensorboard: bool
    ignore_labels: bool
    """Whether even categories that the generator found by itself are to stay without labels."""

    @property
    def num_classes(self) -> int:
        """Classes that the generator knows: 0 when unconditional."""
        return len(self.class_names) if self.conditional else 0

    @property
    def names_categories(self) -> bool:
        """Whether it is to be found out which label each category is that the generator finds without labels."""
        return family(self.family).finds_categories and not self.ignore_labels and len(self.class_names) > 1

    @property
    def critic_classes(self) -> tuple[str, ...]:
        """Classes that the critic takes or tells apart, in the order of their numbers: () where there are none."""
        if not family(self.family).supervised:
            return self.class_names if self.conditional else ()
        names = tuple(name for name in self.class_names if name not in UNLABELLED)
        return names if len(names) > 1 else ()

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self.image_shape
        return channels, height, width

    def make_family(self) -> Family[Any]:
        kind = family(self.family)
        return kind(self.options, self.channels_first, len(self.critic_classes))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "config.json") -> TrainConfig:
        """Strict: an unknown, missing or mistyped field is a TrainingError that names it."""
        try:
            config = _CONFIG.validate_json(text)
            options = TypeAdapter(family(config.family).Options).validate_json(json.dumps(config.options))
        except ValidationError as error:
            raise TrainingError(
                f"{source} is not a training's configuration: {_first(error)}; it was changed by hand or written by "
                "another version of augmint, so train anew.",
                code="training.config",
            ) from error
        return replace(config, options=options)


_CONFIG = TypeAdapter(TrainConfig)


def options_from(
    name: str, settings: Mapping[str, object], *, batch: int | None = None, preset: str | None = None
) -> FamilyOptions:
    """The options of family `name`: its paper's defaults, changed by `preset` and `settings` (values, or text).

    Raises UsageError, which lists the options there are or says what was wrong with the value.
    """
    options = family(name).Options
    valid = [entry.name for entry in fields(options)]
    presets: dict[str, Mapping[str, object]] = {PAPER: {}, **family(name).presets}
    if preset is not None and preset not in presets:
        raise UsageError(f"family {name!r} has no preset {preset!r}: --preset takes one of {', '.join(presets)}.")
    given = {**presets[preset or PAPER], **settings}
    if batch is not None:
        given["batch"] = batch
    for key in given:
        if key not in valid:
            raise UsageError(f"family {name!r} has no option {key!r}: --set takes one of {', '.join(valid)}.")
    typed = {key: _value(value) if isinstance(value, str) else value for key, value in given.items()}
    try:
        return TypeAdapter(options).validate_json(json.dumps(typed))
    except (ValidationError, TypeError) as error:
        what = _first(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"--set for family {name!r}: {what}.") from error


def _value(text: str) -> object:
    """Numbers, true and false as JSON writes them; anything else is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_resolution(resolution: str | int | None) -> int | tuple[int, int] | None:
    """ "32" -> 32, "48x64" -> (48, 64), height first."""
    if resolution is None or isinstance(resolution, int):
        return resolution
    sides = resolution.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(
            f"--resolution {resolution!r} is not a size: give pixels, such as 32, or height x width, such as 48x64."
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _first(error: ValidationError) -> str:
    """The first of pydantic's complaints, as half a sentence."""
    details = error.errors()[0]
    where = ".".join(str(part) for part in details["loc"]) or "the file"
    what = details["msg"][0].lower() + details["msg"][1:]
    value = details.get("input")
    given = f" (not {value!r})" if isinstance(value, str | int | float) else ""
    return f"{where}: {what}{given}"
