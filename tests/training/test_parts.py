"""Sampler, moving average, randomness, augmentation, run files, time budget: each on its own."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from augmint.errors import DataError, TrainingError, UsageError
from tests.training.conftest import CLASSES, draw
from training import Run, TrainRequest, load_generator, train, weights_digest
from training.averaging import average_decay, average_into, calibration_batches, recalibrate_batch_norm
from training.config import options_from
from training.diffaugment import AugmentPolicy, WarpPolicy, diff_augment, warp
from training.families.dcgan import Dcgan
from training.machine import make_fabric
from training.probe import fastest_settings, fit_to_time
from training.progress import LineReporter
from training.randomness import StepRandom, seed_of
from training.run import write_atomically
from training.sampling import Sampler, class_law

# -- randomness ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**62), st.integers(0, 10**6), st.integers(0, 5), st.text(max_size=9))
def test_draws_depend_on_seed_step_retry_and_purpose_alone(seed: int, step: int, retry: int, purpose: str) -> None:
    random = StepRandom(seed, step, retry)
    assert random.number(purpose) == StepRandom(seed, step, retry).number(purpose)
    others = [
        StepRandom(seed + 1, step, retry).number(purpose),
        StepRandom(seed, step + 1, retry).number(purpose),
        StepRandom(seed, step, retry + 1).number(purpose),
        random.number(purpose + "x"),
    ]
    assert random.number(purpose) not in others
    assert 0 <= random.number(purpose) < 2**63


def test_seeds_are_pinned() -> None:
    """A change here would make old runs resume differently."""
    assert seed_of(0, "initial weights") == 2458874617729642689


# -- sampler -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 64),
    st.integers(0, 1000),
)
def test_a_batch_has_every_class_as_its_law_says(counts: list[int], power: float, batch: int, step: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    sampler = Sampler(labels, len(counts), power)
    random = StepRandom(0, step)
    drawn = sampler.labels(batch, random, "test")
    expected = class_law(torch.tensor(counts), power) * batch
    seen = torch.bincount(drawn, minlength=len(counts))
    assert len(drawn) == batch
    assert ((seen - expected).abs() < 1 + 1e-6).all(), "each class to within one image of its share"
    assert torch.equal(labels[sampler.indices(drawn, random, "test")], drawn)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(1, 16), st.integers(0, 1000))
def test_pairs_are_two_images_of_one_class(counts: list[int], half: int, step: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sampler = Sampler(labels, len(counts), 0.0, pairs=True)
    random = StepRandom(0, step)
    drawn = sampler.labels(2 * half, random, "test")
    indices = sampler.indices(drawn, random, "test")
    assert torch.equal(drawn[::2], drawn[1::2])
    assert torch.equal(labels[indices], drawn)
    assert (indices[::2] != indices[1::2]).all()


def test_a_pair_of_a_single_image_is_that_image_twice() -> None:
    sampler = Sampler(torch.tensor([0]), 1, 0.0, pairs=True)
    assert sampler.indices(torch.tensor([0, 0]), StepRandom(0, 0), "").tolist() == [0, 0]


def test_laws() -> None:
    counts = torch.tensor([100, 25, 0])
    assert class_law(counts, 0.0).tolist() == [0.5, 0.5, 0.0]
    torch.testing.assert_close(class_law(counts, 0.5), torch.tensor([2 / 3, 1 / 3, 0.0], dtype=torch.float64))
    assert class_law(counts, 1.0).tolist() == [0.8, 0.2, 0.0]


def test_every_image_is_drawn() -> None:
    sampler = Sampler(torch.tensor([0] * 3 + [1] * 30), 2, 0.0)
    seen = [sampler.indices(sampler.labels(8, r, ""), r, "") for r in (StepRandom(0, step) for step in range(100))]
    assert set(torch.cat(seen).tolist()) == set(range(33))


# -- moving average ------------------------------------------------------------------------------------------------


def test_the_average_ramps_up_by_images_seen() -> None:
    settings = {"half_life": 1000.0, "ramp": 0.05}
    assert average_decay(0, 10, **settings) == pytest.approx(0.5 ** (10 / 0.5))
    assert average_decay(9_990, 10, **settings) == pytest.approx(0.5 ** (10 / 500))
    assert average_decay(10**9, 10, **settings) == pytest.approx(0.5 ** (10 / 1000))
    # By images, not steps: two steps of 5 forget as much as one of 10.
    assert average_decay(10**9, 5, **settings) ** 2 == pytest.approx(average_decay(10**9, 10, **settings))
    assert average_decay(10**9, 10, half_life=0, ramp=0.05) == 0


def test_averaging() -> None:
    average, live = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        live.weight.fill_(3.0)
        live.running_mean.fill_(7.0)  # type: ignore[union-attr]
    average_into(average, live, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [7.0, 7.0]  # type: ignore[union-attr]


def test_recalibration_makes_statistics_those_of_the_generators_own_images() -> None:
    torch.manual_seed(0)
    generator = Dcgan(options_from("dcgan", {"width": 16}), (1, 8, 8), 0).generator()  # type: ignore[arg-type]
    with torch.no_grad():
        generator.project.weight.mul_(5.0)  # type: ignore[union-attr, operator]
    before = weights_digest(generator.state_dict())
    batches = list(calibration_batches(100, 0))
    one = recalibrate_batch_norm(generator, batches)
    assert weights_digest(generator.state_dict()) == before, "the original is not touched"
    assert weights_digest(one.state_dict()) == weights_digest(recalibrate_batch_norm(generator, batches).state_dict())
    # In eval mode a calibrated batch norm gives its own training images mean 0 and variance 1.
    activations: list[torch.Tensor] = []
    one.layers[0].register_forward_hook(lambda _, inputs, __: activations.append(inputs[0]))  # type: ignore[index, union-attr]
    with torch.no_grad():
        for latent, label in batches:
            one(latent, label)
    seen = torch.cat(activations)
    norm: Any = one.layers[0]  # type: ignore[index]
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), atol=1e-2, rtol=2e-2)


def test_recalibration_is_without_dropout() -> None:
    """Images are made without: with it the statistics would be too wide, and another draw each time."""

    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, latent: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
            return self.norm(self.dropout(latent))

    latent = torch.randn(256, 4)
    calibrated = recalibrate_batch_norm(Dropping(), [(latent, None)])
    torch.testing.assert_close(calibrated.norm.running_var, latent.var(0))


def test_calibration_sees_all_classes_alike() -> None:
    labels = torch.cat([label for _, label in calibration_batches(4, 3) if label is not None])
    counts = torch.bincount(labels)
    assert int(counts.max() - counts.min()) <= 1


# -- augmentation --------------------------------------------------------------------------------------------------


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_policy_of_zeros_changes_nothing() -> None:
    images = torch.rand(3, 3, 8, 8)
    assert diff_augment(images, AugmentPolicy(), rng()) is images
    assert warp(images, WarpPolicy(), rng()) is images


def test_translation_moves_whole_pixels_and_fills_with_grey() -> None:
    images = torch.rand(64, 3, 10, 14) + 1
    moved = diff_augment(images, AugmentPolicy(translation=0.2), rng())
    shifts = set()
    for before, after in zip(images, moved, strict=True):
        rows, columns = (after.abs().sum(0) > 0).any(1).nonzero()[:, 0], (after.abs().sum(0) > 0).any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        height, width = len(rows), len(columns)
        y, x = (10 - height if top == 0 else 0), (14 - width if left == 0 else 0)
        assert torch.equal(after[:, rows][:, :, columns], before[:, y : y + height, x : x + width])
        shifts.add((top - y, left - x))
    assert {y for y, _ in shifts} == set(range(-2, 3))
    assert {x for _, x in shifts} == set(range(-3, 4))


def test_cutout_greys_a_square() -> None:
    cut = diff_augment(torch.ones(200, 1, 20, 20), AugmentPolicy(cutout=0.5), rng())
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    grey = (cut == 0).sum((1, 2, 3))
    assert int(grey.max()) == 100
    assert int(grey.min()) >= 25, "its centre is inside the image"


def test_colour_leaves_grey_images_alone() -> None:
    grey, colour = torch.rand(4, 1, 8, 8), torch.rand(4, 3, 8, 8)
    assert diff_augment(grey, AugmentPolicy(color=1.0), rng()) is grey
    assert not torch.equal(diff_augment(colour, AugmentPolicy(color=1.0), rng()), colour)


def test_gradients_pass_through() -> None:
    images = torch.rand(4, 3, 12, 12, requires_grad=True)
    diff_augment(images, AugmentPolicy(translation=0.1, cutout=0.3, color=1.0), rng()).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_warp_is_mild_and_each_image_has_its_own() -> None:
    images = torch.zeros(8, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1
    policy = WarpPolicy(rotation=10, zoom=0.1, shear=0.1, shift=0.02, elastic=0.05)
    warped = warp(images, policy, rng())
    assert 0.6 < float(warped.sum() / images.sum()) < 1.5
    assert len({tuple(image.flatten().tolist()) for image in warped}) == 8
    assert warp(images[:, :, :, :20], policy, rng()).shape == (8, 1, 28, 20)


# -- precision -----------------------------------------------------------------------------------------------------


def test_bf16_gives_float32_outputs_and_lets_gradient_penalties_through(request_of: Any) -> None:
    fabric = make_fabric("cpu", "bf16-mixed")
    layer = torch.nn.Linear(4, 4)
    module, _ = fabric.setup(layer, torch.optim.SGD(layer.parameters(), 0.1))
    image = torch.rand(2, 4, requires_grad=True)
    output = module(image)
    assert output.dtype == torch.float32
    (gradient,) = torch.autograd.grad(output.sum(), image, create_graph=True)
    fabric.backward(gradient.square().sum())
    run = train(request_of(steps=5, batch=8, precision="bf16-mixed"), progress=False)
    assert run.config.precision == "bf16-mixed"


# -- the run directory ---------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_readers_never_see_half_a_status(tiny_run: Run, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny_run.config)
    status = tiny_run.status()
    run.write_status(status)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            run.write_status(replace(status, note="x" * np.random.default_rng().integers(0, 50_000)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(50):
            assert run.status().best == status.best
    finally:
        stop.set()
        thread.join()


def test_what_a_run_holds(tiny_run: Run) -> None:
    assert sorted(path.name for path in tiny_run.path.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "samples",
        "status.json",
        "tensorboard",
    ]
    assert Run.open(tiny_run.path).config == tiny_run.config
    assert tiny_run.config.class_names == CLASSES
    assert tiny_run.config.image_shape == (8, 8, 1)
    assert list((tiny_run.path / "tensorboard").iterdir())
    assert not any(path.name.startswith(".") for path in (tiny_run.path / "checkpoints").iterdir())


def test_no_checkpoint_is_unpickled(tiny_run: Run, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny_run.config)
    torch.save({"generator": Path("/")}, run.checkpoint_path("best"))  # a class, not weights
    with pytest.raises(TrainingError, match="damaged"):
        load_generator(run)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other networks"])
def test_a_damaged_checkpoint_is_refused(tiny_run: Run, tmp_path: Path, damage: str) -> None:
    run = Run.create(tmp_path / "run", tiny_run.config)
    content = tiny_run.checkpoint_path("best").read_bytes()
    path = run.checkpoint_path("best")
    if damage == "other networks":
        torch.save({"generator": {"weight": torch.zeros(1)}, "critic": {}}, path)
    else:
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"hello"}[damage])
    with pytest.raises(TrainingError, match="train anew") as refused:
        load_generator(run)
    assert refused.value.code == "training.checkpoint-damaged"


def test_missing_things_are_named(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(TrainingError, match="no run directory"):
        Run.open(tmp_path)
    run = Run.create(tmp_path / "run", tiny_run.config)
    with pytest.raises(TrainingError, match="no best checkpoint"):
        load_generator(run)
    (run.path / "status.json").write_text('{"state": "fin')
    with pytest.raises(TrainingError, match=r"status\.json is missing or damaged"):
        run.status()
    (run.path / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"config\.json is not"):
        Run.open(run.path)


def test_a_run_is_never_overwritten(tiny_run: Run, request_of: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train(request_of(out=tiny_run.path), progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="--out"):
        train(request_of(out=tmp_path / "file"), progress=False)


def test_runs_without_a_name_are_numbered(request_of: Any) -> None:
    names = [str(train(request_of(out=None, steps=1), progress=False).path) for _ in range(2)]
    assert names == ["runs/tiny-augment-1", "runs/tiny-augment-2"]


def test_metrics_cut_short_are_forgotten(tiny_run: Run, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny_run.config)
    for step in range(1, 5):
        run.append_metrics({"step": step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "d_l')
    run.truncate_metrics(3)
    assert [json.loads(line) for line in run.metrics_path.read_text().splitlines()] == [
        {"step": step} for step in (1, 2, 3)
    ]


# -- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 1.0}, "not both"),
        ({"steps": 0}, "--steps 0"),
        ({"steps": None, "minutes": 0.0}, "--minutes 0"),
        ({"steps": None, "minutes": float("nan")}, "--minutes nan"),
        ({"family": "nope"}, "choose one of"),
        ({"settings": {"nope": "1"}}, "no option 'nope'"),
        ({"batch": 0}, "batch"),
        ({"batch": 7}, "--batch must be even"),
        ({"seed": -1}, "--seed"),
        ({"threads": 0}, "--threads"),
        ({"precision": "fp8"}, "--precision"),
        ({"resize": "squash"}, "--resize"),
        ({"resolution": "big"}, "--resolution"),
        ({"resolution": "4"}, "--resolution"),
        ({"device": "npu"}, "--device"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
    ],
)
def test_what_a_user_gets_wrong(request_of: Any, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        train(request_of(**changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_class_without_training_images(request_of: Any, tmp_path: Path) -> None:
    images, labels = draw(4)
    path = tmp_path / "few.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array([*CLASSES, "empty"]))
    with pytest.raises(DataError, match="empty"):
        train(request_of(data=path), progress=False)


def test_labels_can_be_ignored(request_of: Any) -> None:
    run = train(request_of(ignore_labels=True, steps=1), progress=False)
    assert run.config.num_classes == 0
    generator, _ = load_generator(run)
    assert generator(torch.zeros(2, run.config.options.latent_dim)).shape == (2, 1, 8, 8)


def test_another_size_and_colour(request_of: Any, tmp_path: Path) -> None:
    images, labels = draw(20, side=12, channels=3)
    path = tmp_path / "colour.npz"
    np.savez(path, images=images, labels=labels, class_names=np.array(CLASSES))
    run = train(request_of(data=path, resolution="12x20", steps=1), progress=False)
    assert run.config.image_shape == (12, 20, 3)
    generator, _ = load_generator(run)
    assert generator(torch.zeros(1, run.config.options.latent_dim), torch.tensor([2])).shape == (1, 3, 12, 20)


# -- a time budget -------------------------------------------------------------------------------------------------


def planned(config: Any, rates: dict[Any, float], seconds: float = 100.0, settings: tuple[str, ...] = ()) -> Any:
    return fit_to_time(
        config,
        lambda asked: rates.get(asked.options.width, 10.0),
        settings=settings,
        fixed_precision=True,
        fixed_threads=True,
        examination_seconds=0.1,
        seconds=seconds,
    )


@pytest.fixture
def dcgan_config(tiny_run: Run) -> Any:
    return replace(
        tiny_run.config, family="dcgan", options=options_from("dcgan", {}), conditional=False, class_counts=(1000,) * 3
    )


def test_width_follows_the_budget(dcgan_config: Any) -> None:
    rates = {16: 100.0, 32: 40.0, 64: 10.0}
    assert planned(dcgan_config, rates, seconds=10).config.options.width == 16
    assert planned(dcgan_config, rates, seconds=60).config.options.width == 32
    plan = planned(dcgan_config, rates, seconds=1000)
    assert plan.config.options.width == 64
    assert 8000 < plan.config.steps < 10_000


def test_what_the_user_set_is_not_fitted(dcgan_config: Any) -> None:
    fixed = replace(dcgan_config, options=options_from("dcgan", {"width": 64}))
    assert planned(fixed, {64: 1.0, 32: 10.0, 16: 100.0}, seconds=10, settings=("width",)).config.options.width == 64


def test_short_budgets_are_examined_less(dcgan_config: Any) -> None:
    long, short = planned(dcgan_config, {}, seconds=1000), planned(dcgan_config, {}, seconds=10)
    assert (long.examinations, long.config.score_images) == (10, 1000)
    assert short.config.score_images < long.config.score_images
    assert planned(dcgan_config, {}, seconds=4).examinations < 10
    assert 0 < short.config.steps < 100


def test_settings_must_be_clearly_faster(tiny_run: Run) -> None:
    config = replace(tiny_run.config, channels_last=False, precision="32-true")
    rates = {(False, "32-true"): 100.0, (True, "32-true"): 103.0, (False, "bf16-mixed"): 150.0}

    def measure(asked: Any) -> float:
        return rates[asked.channels_last, asked.precision]

    best, rate = fastest_settings(config, measure, fixed_precision=False, fixed_threads=True)
    assert (best.channels_last, best.precision, rate) == (False, "bf16-mixed", 150.0)


@pytest.mark.parametrize(("cores", "gain", "threads"), [(2, 9.0, 1), (8, 1.1, 1), (8, 3.0, 7)])
def test_a_core_is_left_to_others(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, cores: int, gain: float, threads: int
) -> None:
    """Seen: two threads on two cores, fast in the probe, were ten times slower once another program ran."""
    monkeypatch.setattr("training.probe.cores", lambda: cores)
    best, _ = fastest_settings(
        tiny_run.config, lambda asked: gain if asked.threads > 1 else 1.0, fixed_precision=True, fixed_threads=False
    )
    assert best.threads == threads


def test_a_run_in_minutes_is_planned_and_finishes(request_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(request_of(steps=None, minutes=0.1, batch=8), progress=True)
    assert run.config.minutes == pytest.approx(0.1)
    assert run.config.score_images == 250
    assert run.status().state == "finished"
    captured = capsys.readouterr()
    assert "images/s" in captured.err
    assert captured.out == "", "results only"


def test_a_slow_machine_finishes_early(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.api.TIME_LIMIT", 0.0)
    monkeypatch.setattr("training.api.steps_per_second", lambda *_, **__: 100.0)
    run = train(request_of(steps=None, minutes=1.0, batch=8), progress=False)
    assert run.config.steps > 1
    status = run.status()
    assert status.state == "finished"
    assert status.step == 1
    assert status.best is not None
    assert "time limit" in status.note


def test_lines_are_rare_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LineReporter(every=1000)
    reporter.start(0, 10, 4)
    for step in range(1, 11):
        reporter.update(step, {"d_loss": 1.0, "g_loss": 0.5}, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "step 10/10" in line
    assert "D 1.00, G 0.50" in line


def test_training_needs_no_tensorboard(request_of: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("training.journal.importlib.import_module", missing)
    request: TrainRequest = replace(request_of(steps=1), tensorboard=True)
    assert train(request, progress=True).status().state == "finished"
    assert "tensorboard is not installed" in capsys.readouterr().err
