"""The model card: the README.md of a bundle, in Hugging Face's form, for somebody who has nothing but the bundle.

It says what was measured, on how many images and how, and what was not. It claims no use that was not measured.
This module turns a description into text; it measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from augmint.bundle import Description, Metric, Utility

__all__ = ["FEW", "SHEET_SEED", "model_card"]

FEW = 50
"""Training images of a class under which the card warns: the literature's rule of thumb, not a law."""
SHEET_SEED = 0
_ROWS = 100  # of a table by class


def model_card(description: Description, *, sheet: Mapping[str, int] | int | None = None) -> str:
    """Markdown with a YAML header.

    Args:
        description: all that the manifest says but for the files.
        sheet: what `samples.png` shows, as the counts of a request; None when there is no sheet.
    """
    parts = [
        _header(description),
        _opening(description),
        _look(sheet),
        _use(description),
        _critic(description),
        _quality(description),
        _edits(description),
        _data(description),
        _evidence(description),
        _limits(description),
        _made(description),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(d: Description) -> str:
    licence = "unknown" if d.identity.licence == "unstated" else d.identity.licence
    tags = ["augmint", "gan", d.architecture.family, "synthetic-data", "data-augmentation", "image-generation", "onnx"]
    tags.append("class-conditional" if d.class_names else "unconditional")
    lines = ["---", f"license: {_yaml(licence)}", "library_name: augmint"]
    lines += ["pipeline_tag: unconditional-image-generation"] if not d.class_names else []
    lines += ["tags:", *(f"- {_yaml(tag)}" for tag in tags)]
    return "\n".join([*lines, "---"])


def _opening(d: Description) -> str:
    height, width, channels = d.image.shape
    what = f"{height}×{width} {'colour' if channels == 3 else 'grey'} images"
    by = f" by class ({len(d.class_names)} classes)" if d.class_names else ""
    found = ""
    if d.codes is not None:
        name, least = min(d.codes.purities.items(), key=lambda pair: pair[1])
        found = (
            f"\n\nIt learned without labels, and found {d.codes.categories} categories by itself. They got their "
            f"labels afterwards, from {d.codes.n:,} training images: {d.codes.purity:.1%} of those lie in a category "
            f"of their own label. Least pure are those of {_text(name)}: {least:.1%} of the images in them are of it."
        )
    trained = sum(d.data.class_counts.values()) or d.data.split.get("train", 0)
    return (
        f"# {_text(d.identity.name)}\n\n"
        f"A generator of synthetic {what}{by}, trained on {trained:,} images of {_text(d.data.name)} with augmint's "
        f"`{d.architecture.family}` family. Everything it makes is synthetic.{found}"
    )


def _look(sheet: Mapping[str, int] | int | None) -> str:
    if sheet is None:
        return ""
    if isinstance(sheet, int):
        asked = str(sheet)
    else:
        shown = dict(list(sheet.items())[:2])
        asked = json.dumps(shown, ensure_ascii=False)
        asked = asked[:-1] + ", …}" if len(sheet) > len(shown) else asked
    by_class = not isinstance(sheet, int)
    return (
        f"![Samples{', one block of rows for each class' if by_class else ''}](samples.png)\n\n"
        f"Not selected: the first images of seed {SHEET_SEED} (`generate({_code(asked)}, seed={SHEET_SEED})`)."
        + (" The number under a class is how many real images it was trained on." if by_class else "")
    )


def _use(d: Description) -> str:
    name = d.identity.name
    if d.class_names:
        label = d.class_names[0]
        counts, body = "{" + json.dumps(label, ensure_ascii=False) + ": 200}", json.dumps({"counts": {label: 200}})
        option = f"--count {_shell(label + '=200')}"
    else:
        counts, body, option = "200", json.dumps({"counts": 200}), "--count 200"
    json_body = json.dumps({**json.loads(body), "seed": 1}, ensure_ascii=False)
    return f"""## Use

In this process (`pip install "augmint[local]"`):

```python
import augmint

samples = augmint.Generator("{name}").generate({counts}, seed=1)
samples.images  # uint8 [200, {d.image.height}, {d.image.width}, {d.image.channels}]
```

From the command line, and as a service:

```sh
augmint sample {name} {option} --seed 1 --out samples.npz
augmint serve {name}
curl -o samples.npz -H 'Content-Type: application/json' -d {_shell(json_body)} http://localhost:3000/v1/generate
```

{_promise(d)}"""


def _promise(d: Description) -> str:
    if d.evidence.batch_invariance is None:
        return (
            f"The same seed gives the same images within {d.sampling.tolerance} grey levels: in half precision they "
            "may differ by batch size and device."
        )
    return (
        "The same seed gives the same images, whatever is asked for beside them: byte for byte on the processor type "
        f"and ONNX Runtime version of the export, elsewhere within {d.sampling.tolerance} grey levels."
    )


def _critic(d: Description) -> str:
    """Where the critic tells classes apart that the generator does not know, it is what the bundle is for."""
    if not d.critic_classes or d.class_names:
        return ""
    names = ", ".join(_text(name) for name in d.critic_classes[:20]) + (", …" if len(d.critic_classes) > 20 else "")
    labels = d.architecture.options.get("labels_per_class")
    few = f", trained with {labels} labelled images of each class" if labels else ""
    return f"""## The critic is a classifier

`critic.onnx` tells {len(d.critic_classes)} classes apart ({names}){few}; the generator takes none, and helped it to \
learn from images without labels.

```python
critic = augmint.Critic("{d.identity.name}")
critic.classify(images)  # images uint8 [N, {d.image.height}, {d.image.width}, {d.image.channels}] -> names of classes
critic.class_logits(images)  # float32 [N, {len(d.critic_classes)}], in the order of critic.class_names
```

With onnxruntime alone: output `class_logits` of `critic.onnx`, in the order of `critic_classes` in manifest.json."""


def _quality(d: Description) -> str:
    judges = d.quality
    if judges is None or not any(why == "" for why in d.offers.values()):
        return ""
    lines = ["## Keeping the better ones", ""]
    wish = ",".join("realism:0.1" if part == "realism" else part for part, why in d.offers.items() if not why)
    lines += [
        f'`quality="{wish}"`, or a part of it (`--quality` on the command line), rejects images one by one and makes '
        "more until there are enough; every answer says how many were rejected and why. Fewer are not better by "
        "themselves: what looks least real may be what a classifier lacks, so measure.",
        "",
    ]
    if judges.classifier is not None:
        lines.append("- `labels`: a small CNN trained on the train images takes the image for its class.")
    if judges.realism is not None:
        lines.append(
            "- `realism:SHARE`: without that share of each class, by the training's own critic "
            f"({judges.realism.n:,} generated images of each class gave the thresholds)."
        )
    if judges.copies is not None:
        lines.append(
            f"- `copies`: no image nearer to a train image than {judges.copies.quantile:.0%} of the "
            f"{judges.copies.held_out:,} validation images are, in that CNN's features. Exact and slightly noisy "
            f"copies are found; shifted or darkened ones are not. `{judges.copies.file}` holds those features of the "
            "train images: no pictures, but whoever has an image can tell by them whether it was trained on."
        )
    lines += [f"- No `{part}`: {_text(why)}." for part, why in d.offers.items() if why]
    return "\n".join(lines)


def _edits(d: Description) -> str:
    if d.edits is None or not d.edits.attributes:
        return ""
    first = d.edits.attributes[0]
    lines = [
        "## Editing",
        "",
        f'`edit={{"{first.name}": {first.limit:g}}}`, or `--edit {first.name}=+{first.limit:g}` on the command line, '
        "moves every image along a direction of latent space that was fitted to the attribute; several may be "
        f"combined, which was not measured. Measured on {d.edits.held_out:,} other images:",
        "",
        "| attribute | one step is | R² | largest | it then changes by | class kept | held |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for edit in d.edits.attributes:
        low, high = edit.steps[0], edit.steps[-1]
        kept = "–" if low.kept is None or high.kept is None else f"{low.kept:.0%}, {high.kept:.0%}"
        lines.append(
            f"| {edit.name}: {_text(edit.what)} | {edit.deviation:.3g} {_text(edit.unit)} | {edit.r2:.2f} | "
            f"±{edit.limit:g} | {low.change:+.2f}, {high.change:+.2f} steps | {kept} | "
            f"{', '.join(edit.holds) or '–'} |".replace("-", "−")
        )
    lines += ["", *(f"- No `{name}`: {_text(why)}." for name, why in d.edits.dropped.items())]
    return "\n".join(lines).rstrip()


def _data(d: Description) -> str:
    split = ", ".join(f"{n:,} {name}" for name, n in d.data.split.items())
    lines = [
        "## Data",
        "",
        f"{_text(d.data.name)}: {split} images. "
        + (
            "The test images had no part in training or in choosing the checkpoint: they were used for the figures "
            "below and for nothing else."
            if d.evidence.metrics
            else "Only the train images were trained on."
        ),
    ]
    if d.class_names:
        per_class = _by_label(d.evidence.metrics)
        columns = [name for name in dict.fromkeys(m.name for m in d.evidence.metrics if m.label is not None)]
        lines += ["", "| class | train images |" + "".join(f" {_words(name)} |" for name in columns)]
        lines += ["|---|---:|" + "---:|" * len(columns)]
        for label in d.class_names[:_ROWS]:
            n = d.data.class_counts.get(label, 0)
            figures = "".join(f" {_figure(per_class.get((label, name)))} |" for name in columns)
            lines.append(f"| {_text(label)} | {n:,} |{figures}")
        if len(d.class_names) > _ROWS:
            lines.append(f"\n… and {len(d.class_names) - _ROWS} more classes; all are in manifest.json.")
    return "\n".join(lines).rstrip()


def _evidence(d: Description) -> str:
    overall = [m for m in d.evidence.metrics if m.label is None]
    lines = ["## What was measured", ""]
    if not d.evidence.metrics:
        lines += ["No quality was measured at export: look at the samples, and measure before you rely on them.", ""]
    else:
        lines += ["| measure | value | n | how |", "|---|---:|---:|---|"]
        for metric in overall:
            note = f" ({_text(metric.note)})" if metric.note else ""
            lines.append(f"| {_words(metric.name)} | {_figure(metric)} | {metric.n:,} | {_text(metric.method)}{note} |")
        lines += [""]
    parity, invariance = d.evidence.parity, d.evidence.batch_invariance
    if parity is not None:
        lines.append(
            f"- The graph against PyTorch: at most {parity.max_levels} grey level(s) apart, in "
            f"{parity.share_differing:.1e} of the values (batches of {_list(parity.batches)})."
        )
    if invariance is not None:
        lines.append(f"- The same bytes in batches of {_list(invariance.batches)} ({invariance.provider}).")
    else:
        lines.append("- The bytes may depend on the batch size; the differences are within the stated tolerance.")
    if d.evidence.utility is not None:
        lines += [*_verdict(d.evidence.utility)]
    else:
        lines.append(
            "- **Whether these images help a classifier was not measured.** Good figures above do not imply it: "
            "compare with and without them on held-out real images, against plain augmentation."
        )
    lines += [f"- Warning: {_text(warning)}" for warning in d.evidence.warnings]
    return "\n".join(lines)


def _verdict(utility: Utility) -> list[str]:
    """The verdict comes with what it rests on."""
    rests = f"{utility.seeds} classifiers of each method, {utility.n:,} real test images"
    lines = [f"- **{_text(utility.sentence)}**"]
    if utility.difference is not None and utility.interval is not None:
        low, high = utility.interval
        lines.append(
            f"- What was compared: {_text(utility.method)}, {_text(utility.amount)}, against the strongest method "
            f"without generated images: {_points(utility.difference)} points of recall ({_points(low)} to "
            f"{_points(high)} with 95 % confidence; {rests})."
        )
    return [*lines, "- Every figure, and pictures beside real ones: [report.html](report.html)."]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _limits(d: Description) -> str:
    few = [label for label in d.class_names if d.data.class_counts.get(label, 0) < FEW]
    lines = [
        "## Intended use and limits",
        "",
        "- Meant for adding images of rare classes to a training set. Not for evaluation sets, not as evidence of "
        "anything in the world, and not to pass as real.",
        "- It knows the train images and nothing else: their biases, gaps and wrong labels are its own, and it may "
        "reproduce some of them closely. Do not publish it if they may not be published.",
        "- An image may not show its class. Check samples by eye before training on them.",
    ]
    if few:
        shown = ", ".join(f"{_text(label)} ({d.data.class_counts.get(label, 0)})" for label in few[:20])
        more = f" and {len(few) - 20} more" if len(few) > 20 else ""
        lines.append(
            f"- **Few images:** {shown}{more}. Under about {FEW} training images a class, expect near copies and "
            "little variety there."
        )
    return "\n".join(lines)


def _made(d: Description) -> str:
    a, g = d.architecture, d.generator
    versions = ", ".join(f"{name} {version}" for name, version in g.versions.items())
    licence = "no licence was stated" if d.identity.licence == "unstated" else f"licence {_text(d.identity.licence)}"
    return (
        "## How it was made\n\n"
        f"augmint {_text(d.identity.augmint_version)}, run `{_code(d.identity.run)}`, family `{a.family}`: "
        f"{a.parameters:,} parameters, checkpoint of step {a.checkpoint_step:,} ({a.images_seen:,} images seen), "
        f"{_text(d.identity.trained)}. ONNX opset {g.opset}, {g.precision}, latents of {d.sampling.latent_dim} numbers "
        f"({d.sampling.algorithm}). Made with {_text(versions)}; {licence}. Data fingerprint "
        f"`{d.data.fingerprint[:16]}…`.\n\n"
        "`augmint inspect` verifies this bundle; manifest.json has every figure."
    )


def _by_label(metrics: Sequence[Metric]) -> dict[tuple[str, str], Metric]:
    return {(m.label, m.name): m for m in metrics if m.label is not None}


def _figure(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "–"
    return f"{metric.value:.3f}" if abs(metric.value) < 1000 else f"{metric.value:,.0f}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _text(value: str) -> str:
    """A user's words within Markdown: one line, nothing that marks up or breaks a table."""
    flat = " ".join(value.split())
    return "".join("\\" + c if c in "\\`*[]<>|#" else c for c in flat)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _code(value: str) -> str:
    return " ".join(value.replace("`", "'").split())


def _yaml(value: str) -> str:
    """A YAML scalar: JSON's strings are YAML's."""
    plain = value.replace("-", "").replace(".", "").isalnum() and value.isascii() and not value[0].isdigit()
    return value if plain and value.lower() not in ("true", "false", "null", "yes", "no") else json.dumps(value)


def _shell(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
