"""Every gate lets a good graph through, and every gate is shown to stop a bad one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from augmint.bundle import Tensor as TensorSpec
from augmint.errors import GateError
from augmint.latents import latents
from export import gates
from export.gates import Limits, Subject
from export.graph import generator_graph, serialise, signature
from export.half import to_half
from tests.augmint.broken_bundles import splice
from tests.export.conftest import Traced
from tests.export.networks import CLASSES, LATENT, SHAPE, Conditional


def changed(subject: Subject, edit: Callable[[onnx.ModelProto], object]) -> Subject:
    model = onnx.ModelProto.FromString(subject.model)
    edit(model)
    return replace(subject, model=model.SerializeToString(deterministic=True))


def code_of(gate: Callable[[], object]) -> str:
    with pytest.raises(GateError) as caught:
        gate()
    assert "\n" not in str(caught.value)
    return caught.value.code


def before_clip(model: onnx.ModelProto) -> str:
    return next(node for node in model.graph.node if node.op_type == "Clip").input[0]


# -------------------------------------------------------------------------------------------------------- plain


def test_a_good_graph_is_plain(subject: Subject) -> None:
    gates.plain(subject.model)


@pytest.mark.parametrize("case", ["random", "domain", "external", "metadata", "invalid"])
def test_what_is_not_plain_is_stopped(subject: Subject, case: str) -> None:
    def edit(model: onnx.ModelProto) -> None:
        value = before_clip(model)
        match case:
            case "random":
                splice(model, helper.make_node("RandomNormalLike", [value], ["noise"]), value)
            case "domain":
                splice(model, helper.make_node("Gelu", [value], ["gelu"], domain="com.microsoft"), value)
            case "external":
                tensor = model.graph.initializer[0]
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="weights.bin")
            case "invalid":
                model.graph.node[0].input[0] = "nowhere"

    bad = changed(subject, edit)
    assert code_of(lambda: gates.plain(bad.model, {"name": "other"} if case == "metadata" else None)) == "export.plain"


# ------------------------------------------------------------------------------------------------------- folded


def test_folding_is_checked(subject: Subject) -> None:
    gates.folded(subject.model)

    def unfold(model: onnx.ModelProto) -> None:
        value = next(node for node in model.graph.node if node.op_type == "Conv").output[0]
        for name in ("scale", "shift", "mean", "variance"):
            model.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), name))
        node = helper.make_node("BatchNormalization", [value, "scale", "shift", "mean", "variance"], ["normal"])
        splice(model, node, value)

    bad = changed(subject, unfold)
    assert code_of(lambda: gates.folded(bad.model)) == "export.unfolded"


def test_a_batch_norm_that_cannot_be_folded_is_let_through() -> None:
    """The convolution's output is used twice, so folding would change the other use."""
    scale = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("s", "b", "m", "v")]
    kernel = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            helper.make_node("Add", ["c", "n"], ["y"]),
        ],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 2, 2])],
        [*scale, kernel],
    )
    gates.folded(helper.make_model(graph).SerializeToString())


# ---------------------------------------------------------------------------------------------------- signature


def test_the_signature_must_be_the_manifests(conditional: Traced, subject: Subject) -> None:
    inputs, outputs = signature(conditional.graph)
    gates.same_signature(subject.model, inputs, outputs)

    def fix_batch(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    def float_images(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    for edit in (fix_batch, float_images):
        bad = changed(subject, edit)
        assert code_of(lambda bad=bad: gates.same_signature(bad.model, inputs, outputs)) == "export.signature"  # type: ignore[misc]
    assert code_of(lambda: gates.same_signature(subject.model, inputs[:1], outputs)) == "export.signature"


def test_a_network_that_fixes_its_batch_is_stopped(unconditional: Traced) -> None:
    """The exporter says nothing of it: it gives up the dynamic batch."""

    class FixedBatch(nn.Module):
        def forward(self, latent: Tensor) -> Tensor:
            return latent.reshape(2, 1, 8, 8)

    model = serialise(generator_graph(FixedBatch(), latent_dim=64, image_shape=SHAPE, num_classes=0))
    inputs = (TensorSpec(name="latent", dtype="float32", shape=("N", 64)),)
    outputs = (TensorSpec(name="image", dtype="uint8", shape=("N", *SHAPE)),)
    assert code_of(lambda: gates.same_signature(model, inputs, outputs)) == "export.signature"


def test_images_of_another_shape_than_promised_are_stopped(subject: Subject) -> None:
    wrong = replace(subject, image_shape=(8, 8, 3))
    assert code_of(lambda: gates.batch_invariance(wrong, batches=(2,))) == "export.signature"


def test_a_graph_that_cannot_be_opened_or_run_is_stopped(subject: Subject) -> None:
    assert code_of(lambda: gates.labels(replace(subject, model=b"no model"))) == "export.session"

    def only_pairs(model: onnx.ModelProto) -> None:
        value = before_clip(model)
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 8, 8], np.int64), "pairs"))
        splice(model, helper.make_node("Reshape", [value, "pairs"], ["paired"]), value)

    bad = changed(subject, only_pairs)
    assert code_of(lambda: gates.batch_invariance(bad, batches=(1, 2, 7))) == "export.session"


# ------------------------------------------------------------------------------------------------------- labels


def test_labels_must_all_work_and_matter(subject: Subject, plain_subject: Subject) -> None:
    gates.labels(subject)
    gates.labels(plain_subject)
    assert code_of(lambda: gates.labels(replace(subject, num_classes=CLASSES + 1))) == "export.labels"

    def deaf(model: onnx.ModelProto) -> None:
        embedding = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("embedding.weight"))
        embedding.CopyFrom(numpy_helper.from_array(np.zeros((CLASSES, 4), np.float32), embedding.name))

    bad = changed(subject, deaf)
    assert code_of(lambda: gates.labels(bad)) == "export.labels"


# -------------------------------------------------------------------------------------------------------- alive


def scaled(subject: Subject, factor: float, offset: float = 0.0) -> Subject:
    """The network's output, before clipping, times a factor plus an offset."""

    def edit(model: onnx.ModelProto) -> None:
        value = before_clip(model)
        for name, number in (("factor", factor), ("offset", offset)):
            model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
        splice(model, helper.make_node("Mul", [value, "factor"], ["times"]), value)
        splice(model, helper.make_node("Add", ["times", "offset"], ["plus"]), "times")

    return changed(subject, edit)


def test_nan_infinite_black_and_equal_images_are_stopped(subject: Subject, plain_subject: Subject) -> None:
    gates.alive(subject)
    gates.alive(plain_subject)
    assert code_of(lambda: gates.alive(scaled(subject, float("nan")))) == "export.not-finite"
    assert code_of(lambda: gates.alive(scaled(subject, 1.0, float("inf")))) == "export.not-finite"
    assert code_of(lambda: gates.alive(scaled(subject, 0.0, -1.0))) == "export.constant"

    def unclipped(model: onnx.ModelProto) -> None:
        # Nothing says where rounding begins, so nothing can be said of NaN before it.
        clip = next(node for node in model.graph.node if node.op_type == "Clip")
        clip.op_type = "Identity"
        del clip.input[1:]

    assert code_of(lambda: gates.alive(changed(subject, unclipped))) == "export.plain"

    def one_image(model: onnx.ModelProto) -> None:
        # The latent and the embedding are multiplied away: every address gives one image, which is not flat.
        for node in model.graph.node:
            if node.op_type == "Concat":
                model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
                splice(model, helper.make_node("Mul", [node.output[0], "nothing"], ["gone"]), node.output[0])
                return

    assert code_of(lambda: gates.alive(changed(subject, one_image))) == "export.constant"


# ------------------------------------------------------------------------------------------------------- parity


def test_parity_is_measured_over_many_values(subject: Subject, plain_subject: Subject) -> None:
    for good in (subject, plain_subject):
        found = gates.parity(good, gates.PARITY_FP32)
        assert found.batches == (1, 7, 64)
        assert found.max_levels <= 1
        assert found.share_differing <= 1e-4


def test_a_perturbed_graph_is_not_the_network(subject: Subject) -> None:
    assert code_of(lambda: gates.parity(scaled(subject, 1.02), gates.PARITY_FP32)) == "export.parity"
    # One level in a few values too many is stopped by the share, not by the size.
    slightly = scaled(subject, 1.0, 1e-5)
    assert code_of(lambda: gates.parity(slightly, gates.PARITY_FP32)) == "export.parity"
    gates.parity(slightly, Limits(levels=1, share=1e-2))


def test_another_networks_weights_are_stopped(subject: Subject) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        other = Conditional().eval()
    assert code_of(lambda: gates.parity(replace(subject, network=other), gates.PARITY_FP32)) == "export.parity"


def test_a_network_in_training_mode_is_stopped(conditional: Traced, subject: Subject) -> None:
    """Batch norms that use the batch's own statistics: the reference is put in eval mode, a graph cannot be."""

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(conditional.network)

        def forward(self, latent: Tensor, label: Tensor) -> Tensor:
            image = self.inner(latent, label)
            return image - image.mean(0, keepdim=True)

    network = Training()
    model = serialise(generator_graph(network, latent_dim=LATENT, image_shape=SHAPE, num_classes=CLASSES))
    bad = replace(subject, model=model, network=network)
    assert code_of(lambda: gates.batch_invariance(bad)) == "export.batch-invariance"


# --------------------------------------------------------------------------------------------- batch invariance


def test_the_bytes_are_the_same_at_every_batch_size(subject: Subject, plain_subject: Subject) -> None:
    for good in (subject, plain_subject):
        found = gates.batch_invariance(good)
        assert found.batches[0] == 1
        assert found.batches[-1] == 64


def test_a_graph_that_mixes_its_batch_is_stopped(subject: Subject) -> None:
    def mix(model: onnx.ModelProto) -> None:
        value = before_clip(model)
        model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "batch"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "little"))
        splice(model, helper.make_node("ReduceMean", [value, "batch"], ["mean"], keepdims=1), value)
        # `splice` handed the mean to the clipping: give it the image again, with a little of the mean.
        node = next(node for node in model.graph.node if node.output[0] == "mean")
        node.input[0] = value
        splice(model, helper.make_node("Mul", ["mean", "little"], ["part"]), "mean")
        splice(model, helper.make_node("Add", [value, "part"], ["mixed"]), "part")
        next(node for node in model.graph.node if node.output[0] == "mixed").input[:] = [value, "part"]

    assert code_of(lambda: gates.batch_invariance(changed(subject, mix))) == "export.batch-invariance"


# ------------------------------------------------------------------------------------------------------- critic


@pytest.fixture(scope="module")
def images(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    latent, label = subject.addresses(20)
    return subject.run(subject.session(), latent, label), label


def test_the_critics_graph_judges_as_the_critic(critic: Traced, images: tuple[np.ndarray, np.ndarray]) -> None:
    assert gates.critic_parity(serialise(critic.graph), critic.network, *images) < 1e-4


def test_a_perturbed_critic_is_stopped(critic: Traced, images: tuple[np.ndarray, np.ndarray]) -> None:
    bad = onnx.ModelProto()
    bad.CopyFrom(critic.graph)
    weight = next(tensor for tensor in bad.graph.initializer if tensor.name.endswith("features.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    model = bad.SerializeToString()
    assert code_of(lambda: gates.critic_parity(model, critic.network, *images)) == "export.critic-parity"
    assert code_of(lambda: gates.critic_parity(b"x", critic.network, *images)) == "export.critic-parity"


def test_a_critic_whose_verdict_depends_on_the_batch_is_stopped(images: tuple[np.ndarray, np.ndarray]) -> None:
    from export.graph import critic_graph

    class Batchwise(nn.Module):
        def forward(self, image: Tensor, label: Tensor) -> Tensor:
            mean = image.mean((1, 2, 3))
            return mean - mean.mean() + 0.1 * label

    graph = critic_graph(Batchwise(), image_shape=SHAPE, num_classes=CLASSES, conditional=True)
    assert code_of(lambda: gates.critic_parity(serialise(graph), Batchwise(), *images)) == "export.critic-parity"


# ------------------------------------------------------------------------------------------------- reproducible


def test_a_second_export_must_give_the_same_bytes(subject: Subject) -> None:
    gates.reproducible(subject.model, lambda: hashlib.sha256(subject.model).hexdigest())
    assert code_of(lambda: gates.reproducible(subject.model, lambda: "0" * 64)) == "export.not-reproducible"


# --------------------------------------------------------------------------------------------------- half precision


def test_half_precision_is_half_the_size_and_nearly_the_same(conditional: Traced, subject: Subject) -> None:
    model = serialise(to_half(conditional.graph))
    assert len(model) < 0.7 * len(subject.model)
    half = replace(subject, model=model)
    gates.plain(model)
    gates.same_signature(model, *signature(conditional.graph))
    gates.alive(half)
    gates.labels(half)
    found = gates.parity(half, gates.PARITY_FP16)
    assert found.max_levels <= gates.PARITY_FP16.levels
    assert code_of(lambda: gates.parity(half, gates.PARITY_FP32)) == "export.parity", "fp16 is wider, and says so"
    weights = {t.data_type for t in onnx.ModelProto.FromString(model).graph.initializer if len(t.dims) > 1}
    assert weights == {TensorProto.FLOAT16}


def test_the_float32_graph_is_left_alone_by_the_conversion(conditional: Traced) -> None:
    before = serialise(conditional.graph)
    assert serialise(to_half(conditional.graph)) == serialise(to_half(conditional.graph))
    assert serialise(conditional.graph) == before


def test_a_perturbed_half_graph_is_stopped(conditional: Traced, subject: Subject) -> None:
    half = replace(subject, model=serialise(to_half(conditional.graph)))
    assert code_of(lambda: gates.parity(scaled(half, 1.2), gates.PARITY_FP16)) == "export.parity"


def test_weights_and_values_beyond_half_precision_are_stopped(conditional: Traced, subject: Subject) -> None:
    big = onnx.ModelProto()
    big.CopyFrom(conditional.graph)
    weight = next(tensor for tensor in big.graph.initializer if tensor.name.endswith("to_image.weight"))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values * np.float32(1e7), weight.name))
    assert code_of(lambda: to_half(big)) == "export.fp16-range"

    assert gates.half_range(subject) < 1000
    assert code_of(lambda: gates.half_range(scaled(subject, float("nan")))) == "export.fp16-range"
    # Weights that a half can hold, but a sum within that it cannot.
    weight.CopyFrom(numpy_helper.from_array(values * np.float32(3e4 / np.abs(values).max()), weight.name))
    to_half(big)
    assert code_of(lambda: gates.half_range(replace(subject, model=big.SerializeToString()))) == "export.fp16-range"


def test_a_graph_without_clipping_cannot_be_converted(conditional: Traced) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(conditional.graph)
    next(node for node in other.graph.node if node.op_type == "Clip").op_type = "Identity"
    assert code_of(lambda: to_half(other)) == "export.plain"


def test_addresses_cover_all_classes(subject: Subject) -> None:
    latent, label = subject.addresses(64)
    assert set(label.tolist()) == set(range(CLASSES))
    assert np.array_equal(latent[10:], subject.addresses(54, 10)[0])
    assert latent.shape == latents(0, range(64), LATENT).shape
