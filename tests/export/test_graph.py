"""The traced graph: its signature, its rounding, and that nothing of this machine is in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from augmint.bundle import Tensor as TensorSpec
from augmint.errors import ExportError
from augmint.runtime import open_session
from export.graph import critic_graph, frozen, generator_graph, levels, serialise, signature, versions
from tests.export.conftest import Traced
from tests.export.networks import CLASSES, LATENT, SHAPE, Critic


def test_a_conditional_generator_has_the_contracts_signature(conditional: Traced) -> None:
    inputs, outputs = signature(conditional.graph)
    assert inputs == (
        TensorSpec(name="latent", dtype="float32", shape=("N", LATENT)),
        TensorSpec(name="label", dtype="int64", shape=("N",)),
    )
    assert outputs == (TensorSpec(name="image", dtype="uint8", shape=("N", *SHAPE)),)


def test_an_unconditional_generator_takes_latents_alone(unconditional: Traced) -> None:
    inputs, outputs = signature(unconditional.graph)
    assert inputs == (TensorSpec(name="latent", dtype="float32", shape=("N", LATENT)),)
    assert outputs == (TensorSpec(name="image", dtype="uint8", shape=("N", 6, 10, 3)),)


def test_a_critic_takes_images_as_the_generator_gives_them(critic: Traced) -> None:
    inputs, outputs = signature(critic.graph)
    assert [tensor.name for tensor in inputs] == ["image", "label"]
    assert inputs[0] == TensorSpec(name="image", dtype="uint8", shape=("N", *SHAPE))
    assert outputs == (
        TensorSpec(name="realism", dtype="float32", shape=("N",)),
        TensorSpec(name="class_logits", dtype="float32", shape=("N", CLASSES)),
    )


@pytest.mark.parametrize("which", ["conditional", "unconditional", "critic"])
def test_nothing_of_machine_or_checkout_is_in_the_file(which: str, request: pytest.FixtureRequest) -> None:
    graph: onnx.ModelProto = request.getfixturevalue(which).graph
    data = serialise(graph)
    home = str(Path(__file__).resolve().parents[2])
    for trace in (home, os.path.expanduser("~"), "site-packages", ".py", "tests.export", "stack_trace", "pkg.torch"):
        assert trace.encode() not in data, trace
    assert not graph.doc_string
    assert not graph.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)
    assert not graph.functions
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}


def test_the_same_network_gives_the_same_bytes(conditional: Traced) -> None:
    again = generator_graph(conditional.network, latent_dim=LATENT, image_shape=SHAPE, num_classes=CLASSES)
    assert serialise(again) == serialise(conditional.graph)


def test_metadata_replace_what_was_there_in_a_fixed_order(conditional: Traced) -> None:
    one = serialise(conditional.graph, {"b": "2", "a": "1"})
    assert one == serialise(onnx.ModelProto.FromString(one), {"a": "1", "b": "2"})
    assert [entry.key for entry in onnx.ModelProto.FromString(one).metadata_props] == ["a", "b"]
    assert not conditional.graph.metadata_props, "the graph itself is left alone"


def test_batch_norms_after_convolutions_are_folded(conditional: Traced) -> None:
    operators = [node.op_type for node in conditional.graph.graph.node]
    # The one left follows a reshaped linear layer, and belongs to the conditional norm.
    assert operators.count("BatchNormalization") == 1
    assert operators.count("Conv") + operators.count("ConvTranspose") == 3


class Identity(nn.Module):
    """The latent is the image."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent.view(-1, 1, 8, 8)


def test_grey_levels_round_half_to_even_and_clip_in_torch_and_runtime_alike() -> None:
    halves = (np.arange(63, dtype=np.float32) + 0.5) / np.float32(127.5) - 1
    cases = np.stack([np.append(halves, -1), np.append(-halves, 1), np.linspace(-3, 3, 64)]).astype(np.float32)
    model = serialise(generator_graph(Identity(), latent_dim=64, image_shape=SHAPE, num_classes=0))
    (found,) = open_session(model, device="cpu", threads=1).session.run(None, {"latent": cases})
    by_torch = levels(torch.from_numpy(cases).view(-1, 1, 8, 8)).numpy()
    clipped = np.clip(cases, np.float32(-1), np.float32(1))
    by_numpy = np.rint((clipped + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    assert np.array_equal(found.reshape(3, 64), by_numpy)
    assert np.array_equal(found, by_torch)
    assert (found.min(), found.max()) == (0, 255)


def test_colour_comes_out_with_channels_last(unconditional: Traced) -> None:
    latent = torch.randn(5, LATENT, generator=torch.Generator().manual_seed(0))
    session = open_session(serialise(unconditional.graph), device="cpu", threads=1).session
    (image,) = session.run(None, {"latent": latent.numpy()})
    expected = levels(unconditional.network(latent)).numpy()
    assert image.shape == (5, 6, 10, 3)
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_spectral_norm_becomes_a_plain_weight() -> None:
    network = Critic()
    with torch.no_grad():
        network(torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))  # one power iteration
    network.eval()
    plain = frozen(network)
    assert not any("parametrizations" in name for name, _ in plain.named_parameters())
    assert any("parametrizations" in name for name, _ in network.named_parameters()), "the original is left alone"
    image, label = torch.randn(4, 1, 8, 8), torch.arange(4) % 3
    assert torch.allclose(plain(image, label), network(image, label))


class DataDependent(nn.Module):
    def forward(self, latent: Tensor) -> Tensor:
        if latent.sum() > 0:
            return latent.view(-1, 1, 8, 8)
        return -latent.view(-1, 1, 8, 8)


def test_a_network_that_cannot_be_traced_is_one_sentence() -> None:
    with pytest.raises(ExportError) as caught:
        generator_graph(DataDependent(), latent_dim=64, image_shape=SHAPE, num_classes=0)
    assert caught.value.code == "export.trace"
    assert "\n" not in str(caught.value)


def test_a_critic_without_labels_or_logits() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 4 * 6, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.linear(image.flatten(1)).squeeze(1)

    graph = critic_graph(Plain(), image_shape=(4, 6, 3), num_classes=0, conditional=False)
    inputs, outputs = signature(graph)
    assert inputs == (TensorSpec(name="image", dtype="uint8", shape=("N", 4, 6, 3)),)
    assert outputs == (TensorSpec(name="realism", dtype="float32", shape=("N",)),)


def test_versions_are_those_that_made_the_graph() -> None:
    assert set(versions()) == {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert all(re.match(r"\d+\.\d+", version) for version in versions().values())
