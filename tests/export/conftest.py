"""Graphs traced once a session, and one real run, trained for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch

from export import evidence, judges
from export.api import ExportRequest, ExportResult, export_run
from export.gates import Subject
from export.graph import critic_graph, generator_graph, serialise
from tests.export.networks import CLASSES, LATENT, SHAPE, Conditional, Critic, Unconditional, settle


@dataclass(frozen=True, eq=False)
class Traced:
    network: torch.nn.Module
    graph: onnx.ModelProto


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever looks at the exported bundle runs in one worker, so that it is exported once."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("exported"))


@pytest.fixture(scope="session")
def conditional() -> Traced:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = settle(Conditional(), torch.randn(60, LATENT), torch.arange(60) % CLASSES)
    return Traced(network, generator_graph(network, latent_dim=LATENT, image_shape=SHAPE, num_classes=CLASSES))


@pytest.fixture(scope="session")
def unconditional() -> Traced:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = settle(Unconditional(), torch.randn(60, LATENT))
    return Traced(network, generator_graph(network, latent_dim=LATENT, image_shape=(6, 10, 3), num_classes=0))


@pytest.fixture(scope="session")
def critic() -> Traced:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = settle(Critic(logits=True), torch.randn(60, 1, 8, 8), torch.arange(60) % CLASSES)
    return Traced(network, critic_graph(network, image_shape=SHAPE, num_classes=CLASSES, conditional=True))


@pytest.fixture(scope="session")
def subject(conditional: Traced) -> Subject:
    return Subject(serialise(conditional.graph), conditional.network, LATENT, SHAPE, CLASSES)


@pytest.fixture(scope="session")
def plain_subject(unconditional: Traced) -> Subject:
    return Subject(serialise(unconditional.graph), unconditional.network, LATENT, (6, 10, 3), 0)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional run on the built-in digits, 8×8 grey: real in every part, trained for a moment."""
    from training.api import train
    from training.config import TrainRequest

    out = tmp_path_factory.mktemp("runs") / "digits run"
    request = TrainRequest(
        data="digits", out=out, steps=6, batch=16, evaluate_every=6, tensorboard=False, settings={"width": 8}
    )
    return train(request, progress=False).path


@pytest.fixture(scope="session", autouse=True)
def _short_classifiers() -> Iterator[None]:
    """Classifiers are trained for a moment: these tests ask what is said, not how good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "_STEPS", 40)
        patch.setattr(judges, "_STEPS", 40)
        yield


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """With everything: second export in a fresh process, evidence, critic."""
    out = tmp_path_factory.mktemp("bundles") / "digits"
    return export_run(ExportRequest(run=run, out=out, licence="cc-by-4.0"))
