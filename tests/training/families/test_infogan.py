"""InfoGAN: its codes, its losses, and how its categories come to have labels."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from augmint.errors import UsageError
from augmint.latents import latents
from training import Run, load_critic, load_generator, resume, train
from training.codes import CodeMap
from training.config import TrainConfig
from training.families.base import Batch
from training.families.infogan import Infogan, InfoganOptions, clustering_loss, codes
from training.loop import Interrupted
from training.randomness import StepRandom
from training.run import load_codes
from training.trainer import Trainer

SMALL = InfoganOptions(width=8, hidden=16, q_hidden=8, categories=4, latent_dim=12, batch=8)


def small(**changes: Any) -> Infogan:
    return Infogan(replace(SMALL, **changes), (1, 8, 8), 0)


def batch_of(recipe: Infogan, size: int = 64) -> Batch:
    random = StepRandom(seed=1, step=0)
    latent = recipe.latent(size, random, "test")
    real, fake = torch.rand(2, size, *recipe.image_shape, generator=random.generator("images")) * 2 - 1
    return Batch(real=real, fake=fake, label=None, random=random, step=0, latent=latent)


# -- codes and networks ------------------------------------------------------------------------------------------------


def test_codes_of_a_bundles_latents_follow_the_papers_laws() -> None:
    """Categories alike often, and the other numbers uniform in (-1, 1): Kolmogorov's distance of 4,000 is small."""
    category, uniform = codes(torch.from_numpy(latents(0, np.arange(4000), 74)), 10)
    counts = torch.bincount(category, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # χ² with 9 degrees of freedom: one in 1,000 is larger
    assert uniform.shape == (4000, 64)
    for column in (0, 1, 63):
        ordered = uniform[:, column].sort().values
        expected = (torch.arange(4000) + 0.5) / 2000 - 1
        assert (ordered - expected).abs().max() / 2 < 0.031  # Kolmogorov-Smirnov, one in 1,000


def test_the_paper_s_networks() -> None:
    """Appendix C.1, table 1: 74 -> 1024 -> 7x7x128 -> 64 -> 1; 64 -> 128 -> 1024 -> 1, and Q 128 -> 10 + 2."""
    networks = Infogan(InfoganOptions(), (1, 28, 28), 0).build()
    shapes = [tuple(weight.shape) for weight in networks.generator.parameters() if weight.ndim > 1]
    assert shapes == [(1024, 74), (7 * 7 * 128, 1024), (128, 64, 4, 4), (64, 1, 4, 4)]
    shapes = [tuple(weight.shape) for weight in networks.critic.parameters() if weight.ndim > 1]
    assert shapes == [(64, 1, 4, 4), (128, 64, 4, 4), (1024, 128 * 49), (1, 1024), (128, 1024), (12, 128)]


def test_the_category_alone_says_which_scores_matter() -> None:
    """Two latents with the same largest score, and the same rest, give the same image."""
    generator = small().generator().eval()
    latent = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    other = latent.clone()
    other[:, :4] = torch.nn.functional.one_hot(latent[:, :4].argmax(1), 4) * 3.0
    assert not torch.equal(latent, other)
    assert torch.equal(generator(latent), generator(other))


def test_a_latent_must_hold_the_codes() -> None:
    with pytest.raises(UsageError, match="at least 6"):
        small(latent_dim=5)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_both_losses_hold_minus_log_q_of_the_codes_drawn() -> None:
    """Equation 5: whoever reads the codes rightly has the lower loss; for the generator likewise."""
    recipe = small(information=2.0, continuous_information=3.0)
    batch = batch_of(recipe)
    category, uniform = codes(batch.latent, 4)  # type: ignore[arg-type]

    class Reader(torch.nn.Module):
        def __init__(self, category: torch.Tensor, means: torch.Tensor) -> None:
            super().__init__()
            self.answer = (50.0 * torch.nn.functional.one_hot(category, 4), means)

        def forward(self, image: torch.Tensor, label: None = None, *, read_codes: bool) -> Any:
            return torch.zeros(len(image)), self.answer

    guess = float(2 * torch.log(torch.tensor(2.0)))
    off = 0.5 * ((uniform[:, :2] + 0.5) ** 2 + 0.0).sum(1).mean()
    right, wrong = Reader(category, uniform[:, :2]), Reader((category + 1) % 4, torch.full((64, 2), -0.5))
    networks = recipe.build()
    for reader, expected in ((right, 0.0), (wrong, 2.0 * 50 + 3.0 * float(off))):
        loss, numbers = recipe.d_loss(reader, batch)
        assert float(loss) == pytest.approx(guess + expected, rel=1e-4)
        networks.critic = reader
        loss, _ = recipe.g_loss(networks, batch)
        assert float(loss) == pytest.approx(guess / 2 + expected, rel=1e-4)
        assert {"d_real", "d_fake", "missed category", "missed continuous"} == numbers.keys()


def test_clustering_wants_sure_answers_that_survive_a_warp_and_are_alike_often() -> None:
    sure = 30.0 * torch.eye(4).repeat(4, 1)
    best = clustering_loss(sure, sure, 4.0)
    assert float(best) == pytest.approx(0, abs=1e-4)
    one = 30.0 * torch.eye(4)[[0]].repeat(16, 1)
    for worse in ((sure, sure.roll(1, 0)), (sure / 30, sure / 30), (one, one)):
        assert float(clustering_loss(*worse, 4.0)) > float(best) + 0.5


def test_clustering_is_off_in_the_paper_s_form_and_teaches_q_from_reals_when_on() -> None:
    for weight, there in ((0.0, False), (1.0, True)):
        recipe = small(clustering=weight)
        _, numbers = recipe.d_loss(recipe.build().critic, batch_of(recipe))
        assert ("clustering" in numbers) == there
    assert InfoganOptions().clustering == 0


# -- which label a category is -----------------------------------------------------------------------------------------


def test_categories_are_matched_to_labels_whatever_their_order() -> None:
    labels = np.repeat(np.arange(3), 100)
    found = np.array([2, 0, 1])[labels]
    found[:10] = 0  # ten of label 0 lie in label 1's category
    fitted = CodeMap.fit(found, labels, 3, 3)
    assert fitted.clusters == ((2,), (0,), (1,))
    assert fitted.purity == pytest.approx(290 / 300)
    assert fitted.purities == pytest.approx((1.0, 100 / 110, 1.0))
    assert fitted.refusal(("a", "b", "c")) == ""
    assert fitted.label_of(np.array([0, 1, 2])).tolist() == [1, 2, 0]
    assert CodeMap.from_dict(fitted.as_dict()) == fitted


def test_no_label_goes_without_a_category_though_another_has_more_images_in_each() -> None:
    """By majority both would be label 0's; and then nobody could ask for label 1."""
    labels = np.array([0] * 120 + [1] * 50)
    found = np.array([0] * 60 + [1] * 60 + [1] * 50)
    fitted = CodeMap.fit(found, labels, 2, 2)
    assert fitted.clusters == ((0,), (1,))
    assert fitted.purities == pytest.approx((1.0, 50 / 110))
    assert "'b'" in fitted.refusal(("a", "b"))
    assert "45%" in fitted.refusal(("a", "b"))


def test_more_categories_than_labels_and_fewer() -> None:
    labels = np.repeat(np.arange(2), 100)
    found = np.concatenate([np.repeat([0, 1, 2, 3], [50, 40, 0, 10]), np.repeat([2, 3], [95, 5])])
    fitted = CodeMap.fit(found, labels, 6, 2)
    assert fitted.clusters == ((0, 1, 3), (2,)), "empty categories are nobody's"
    assert fitted.purity == pytest.approx(195 / 200)
    found = np.concatenate([np.repeat([0, 1, 3], [50, 40, 10]), np.repeat([2, 3], [95, 5])])
    thirds = CodeMap.fit(np.where(found == 3, 4, found), np.where(found == 3, labels + 1, labels), 6, 3)
    assert 4 not in thirds.clusters[0]
    fewer = CodeMap.fit(labels // 1 % 2, np.repeat(np.arange(4), 50), 2, 4)
    assert "2 categories for 4 labels" in fewer.refusal(tuple("abcd"))


def test_by_label_only_categories_of_the_label_are_drawn_each_alike_often() -> None:
    recipe = small()
    generator, critic = (part.eval() for part in (recipe.generator(), recipe.critic()))
    members = torch.tensor([[True, False, True, False], [False, True, False, False]])
    latent = torch.from_numpy(latents(0, np.arange(600), 12))
    drawn: list[torch.Tensor] = []
    generator.register_forward_pre_hook(lambda _, inputs: drawn.append(codes(inputs[0], 4)[0]))
    by_label = recipe.generator_by_label(generator, members)
    with torch.no_grad():
        for label in (0, 1):
            by_label(latent, torch.full((600,), label))
    assert torch.bincount(drawn[0], minlength=4)[[1, 3]].sum() == 0
    assert torch.bincount(drawn[0], minlength=4)[0] == pytest.approx(300, abs=50)
    assert (drawn[1] == 1).all()

    # The critic adds log Q(label | x), so that over all labels the probabilities are those of their categories.
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    judged = recipe.critic_by_label(critic, members)
    with torch.no_grad():
        plain, (logits, _) = critic(images, read_codes=True)
        shares = torch.stack([judged(images, torch.full((5,), label)) - plain for label in (0, 1)], 1).exp()
    expected = logits.softmax(1)
    torch.testing.assert_close(shares, torch.stack([expected[:, [0, 2]].sum(1), expected[:, 1]], 1))


# -- in a run ----------------------------------------------------------------------------------------------------------

SETTINGS = {"width": 8, "hidden": 16, "q_hidden": 8, "clustering": 1.0}


def find_shapes(_: Infogan, critic: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The three shapes of the test data: a whole row is light, or a row and a column, or neither."""
    light = images[:, 0] > -1
    row, column = (light.all(axis).any(1) for axis in (2, 1))
    return torch.where(row & column, 5, torch.where(row, 2, 7))


def run_with_codes(request_of: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Run:
    """A run whose critic is made to find the shapes."""
    monkeypatch.setattr(Infogan, "categories_of", find_shapes)
    return train(request_of(family="infogan", batch=8, settings=SETTINGS, **changes), progress=False)


def test_a_run_knows_its_categories_labels_and_is_then_asked_by_them(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_codes(request_of, monkeypatch)
    assert not run.config.conditional
    for which in ("best", "last"):
        found, refused = load_codes(run, which)  # type: ignore[arg-type]
        assert refused == ""
        assert found is not None
        assert found.clusters == ((2,), (7,), (5,))
        assert (found.purity, found.n) == (1.0, run.config.class_counts[0] * 3)
        generator, config = load_generator(run, which)  # type: ignore[arg-type]
        raw, plain = load_generator(run, which, by_label=False)  # type: ignore[arg-type]
        assert (config.num_classes, plain.num_classes) == (3, 0)
        latent = torch.randn(9, config.options.latent_dim)
        asked = generator(latent, torch.full((9,), 1))
        chosen = latent.clone()
        chosen[:, 7] = 9.0
        torch.testing.assert_close(asked, raw(chosen))
        critic, config = load_critic(run, which)  # type: ignore[arg-type]
        assert critic(asked, torch.full((9,), 1)).shape == (9,)
    best = run.status().best
    assert best is not None
    assert best.details["purity"] == 1.0


def test_too_few_categories_for_the_labels_are_told_before_training(
    request_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_of(family="infogan", steps=1, settings={**SETTINGS, "categories": 2, "latent_dim": 9})
    run = train(request, progress=True)
    assert "--set categories=3 --set latent_dim=10" in capsys.readouterr().err
    assert "2 categories for 3 labels" in load_codes(run)[1]


def test_without_labels_there_is_no_map(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_codes(request_of, monkeypatch, ignore_labels=True)
    assert run.config.ignore_labels
    assert TrainConfig.from_json(run.config.to_json()) == run.config
    assert load_codes(run) == (None, "")
    generator, config = load_generator(run)
    assert config.num_classes == 0
    assert generator(torch.zeros(2, config.options.latent_dim)).shape == (2, 1, 8, 8)


def test_a_map_is_of_its_own_step(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """last.pt of a run that was stopped between two examinations has none; resumed to its end, it has."""
    step = Trainer.train_step

    def stopping(trainer: Trainer) -> None:
        step(trainer)
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted) as stopped:
            run_with_codes(request_of, patch, evaluate_every=3)
    run = stopped.value.run
    assert load_codes(run, "best")[1] == ""
    assert "between two examinations" in load_codes(run, "last")[1]
    assert load_generator(run, "last")[1].num_classes == 0
    monkeypatch.setattr(Infogan, "categories_of", find_shapes)
    assert load_codes(resume(run, progress=False), "last")[1] == ""
