"""Requests, options and the configuration's round trip."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augmint.errors import DeviceError, TrainingError, UsageError
from training import FAMILIES, TrainConfig
from training.config import options_from, parse_resolution
from training.machine import resolve_device

names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    class_names = tuple(draw(names))
    kind = draw(st.sampled_from(FAMILIES))
    batch = draw(st.integers(1, 512))
    return TrainConfig(
        made_with="test",
        data=draw(st.text(max_size=20)),
        data_name="data",
        data_fingerprint="0" * 64,
        skip_bad=draw(st.booleans()),
        class_names=class_names,
        class_counts=tuple(draw(st.integers(0, 10**6)) for _ in class_names),
        image_shape=(draw(st.integers(8, 256)), 32, draw(st.sampled_from([1, 3]))),
        resize="fit",
        family=kind.name,
        options=options_from(kind.name, {"ema_ramp": draw(st.floats(1e-6, 1e6))}, batch=batch),
        conditional=draw(st.booleans()),
        seed=draw(st.integers(0, 2**63 - 1)),
        steps=draw(st.integers(1, 10**7)),
        minutes=draw(st.none() | st.floats(0, 1e4)),
        device=draw(st.sampled_from(["cpu", "cuda"])),
        precision=draw(st.sampled_from(["32-true", "bf16-mixed"])),
        threads=draw(st.integers(1, 64)),
        channels_last=draw(st.booleans()),
        log_every=1,
        evaluate_every=2,
        score_images=500,
        checkpoint_every=3,
        tensorboard=False,
        ignore_labels=draw(st.booleans()),
    )


@given(configs())
def test_json_round_trip(config: TrainConfig) -> None:
    again = TrainConfig.from_json(config.to_json())
    assert again == config
    assert type(again.options) is type(config.options)


@given(configs(), st.data())
def test_a_changed_field_is_refused_by_name(config: TrainConfig, data: st.DataObject) -> None:
    raw = json.loads(config.to_json())
    part = data.draw(st.sampled_from([raw, raw["options"]]))
    name = data.draw(st.sampled_from(sorted(part)))
    change = data.draw(st.sampled_from(["remove", "misspell", "mistype"]))
    if change == "misspell" or (change == "remove" and part is not raw):
        part[name + "_"] = part.pop(name)
    elif change == "remove":
        del part[name]
    else:
        part[name] = {"a": "dictionary"}
    if change == "remove" and name == "schema":
        return  # it has a default
    with pytest.raises((TrainingError, UsageError)):
        TrainConfig.from_json(json.dumps(raw))


def test_text_that_is_not_json_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"config\.json is not"):
        TrainConfig.from_json("{")


def test_settings_are_typed_as_the_options_are() -> None:
    options: Any = options_from(
        "dcgan", {"width": "32", "learning_rate": "1e-3", "spectral_norm": "true", "head": "two_logits"}, batch=7
    )
    assert (options.width, options.learning_rate, options.spectral_norm) == (32, 1e-3, True)
    assert (options.head, options.batch) == ("two_logits", 7)
    assert options_from("dcgan", {"width": 32}) == replace(options_from("dcgan", {}), width=32)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": "32"}, "no option 'widht'.*width"),
        ({"width": "0"}, "width.*greater than or equal to 1"),
        ({"width": "wide"}, "width.*integer"),
        ({"head": "three_logits"}, "head.*one_logit"),
        ({"learning_rate": "-1"}, "learning_rate"),
        ({"learning_rate": "NaN"}, "learning_rate"),
        ({"learning_rate": object()}, "not JSON serializable"),
    ],
)
def test_wrong_settings_are_usage_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_from("dcgan", settings)


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), (32, 32), ("32", 32), ("48x64", (48, 64)), ("48×64", (48, 64))]
)
def test_resolutions(text: str | int | None, size: object) -> None:
    assert parse_resolution(text) == size


@pytest.mark.parametrize("text", ["", "x", "32x", "0", "-4", "1x2x3", "3.5", "wide"])
def test_resolutions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--resolution"):
        parse_resolution(text)


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        resolve_device("tpu")


def test_cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu"):
        resolve_device("cuda")
