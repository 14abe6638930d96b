"""The model card: readable by hubs, proof against a user's words, and claiming nothing that was not measured."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from augmint.bundle import BatchInvariance, Description, Utility
from export.card import model_card
from tests.tinybundle import tiny_description

CLASSES = ("cat", "a|b", "<img src=x>", "`code` *x*\n# heading", "it's")


def described(class_names: tuple[str, ...] = CLASSES, **identity: str) -> Description:
    d = tiny_description("name", class_names)
    return d.model_copy(
        update={
            "identity": d.identity.model_copy(update=identity),
            "data": d.data.model_copy(update={"class_counts": dict.fromkeys(class_names, 60), "name": "my <data>"}),
        }
    )


def header(card: str) -> dict[str, object]:
    fields: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return fields


@pytest.mark.parametrize(
    ("licence", "field"),
    [
        ("cc-by-4.0", "cc-by-4.0"),
        ("unstated", "unknown"),
        ("mine: all\n- of it", "mine: all\n- of it"),
        ("no", "no"),
        ("1.0", "1.0"),
        ("été", "été"),
    ],
)
def test_the_licence_is_one_yaml_text(licence: str, field: str) -> None:
    assert header(model_card(described(licence=licence)))["license"] == field


def test_labels_cannot_break_the_page() -> None:
    card = model_card(described(), sheet=dict.fromkeys(CLASSES, 12))
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(CLASSES)
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)
    assert "<img" not in card.replace("\\<", "")
    assert "\n# heading" not in card
    assert card.count("\n# ") == 1, "one title"


def test_a_label_with_a_quote_survives_the_shell() -> None:
    import shlex

    card = model_card(described(("it's", "b")))
    sample = next(line for line in card.splitlines() if line.startswith("augmint sample"))
    assert "it's=200" in shlex.split(sample)
    curl = next(line for line in card.splitlines() if line.startswith("curl"))
    body = shlex.split(curl)[-2]
    assert json.loads(body)["counts"] == {"it's": 200}


def test_it_claims_no_use_that_was_not_measured() -> None:
    d = described()
    card = model_card(d)
    assert "Whether these images help a classifier was not measured" in card
    assert "No quality was measured" in card
    utility = Utility(
        verdict="makes no difference",
        sentence="It makes no difference for a|b.",
        method="real + synthetic + affine",
        amount="twice the real images",
        classes=("a|b",),
        difference=-0.002,
        interval=(-0.01, 0.006),
        seeds=5,
        n=1000,
    )
    measured = d.model_copy(update={"evidence": d.evidence.model_copy(update={"utility": utility})})
    card = model_card(measured)
    assert "was not measured" not in card
    assert "**It makes no difference for a\\|b.**" in card
    assert "−0.2 points of recall (−1.0 to +0.6 with 95 % confidence; 5 classifiers of each method, 1,000 real" in card


def test_few_images_are_warned_of_by_name() -> None:
    d = described(("cat", "dog"))
    d = d.model_copy(update={"data": d.data.model_copy(update={"class_counts": {"cat": 500, "dog": 19}})})
    card = model_card(d)
    assert "**Few images:** dog (19)." in card
    assert "Few images" not in model_card(described())


def test_the_promise_depends_on_what_was_checked() -> None:
    d = described()
    assert "byte for byte" not in model_card(d)
    checked = d.evidence.model_copy(update={"batch_invariance": BatchInvariance(batches=(1, 64), provider="CPU")})
    assert "byte for byte" in model_card(d.model_copy(update={"evidence": checked}))


def test_an_unconditional_card_speaks_of_no_classes() -> None:
    card = model_card(described(()), sheet=64)
    assert "generate(64, seed=0)" in card
    assert "| class |" not in card
    assert "under a class is how many" not in card
    assert header(card)["pipeline_tag"] == "unconditional-image-generation"


@given(
    labels=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), unique=True, max_size=5
    ),
    words=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
@settings(deadline=None, max_examples=60)
def test_any_words_make_a_card_with_a_header(labels: list[str], words: str) -> None:
    card = model_card(described(tuple(labels), licence=words or "unstated", run=words), sheet=dict.fromkeys(labels, 2))
    assert card.startswith("---\n")
    if words.isprintable():
        assert header(card)["library_name"] == "augmint"
