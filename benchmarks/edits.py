"""What do a bundle's edits do, on addresses that had no part in fitting them, to a judge that had none either?

    python benchmarks/edits.py bundles/digits mnist5k --pictures docs/families

The judge is trained on the data's whole train split, with another seed and for longer than the bundle's own classifier;
it may have seen what the generator has not. Of each attribute and amount: the mean change in its standard deviations,
the share of images that it moves the right way, the mean change of the other attributes (the largest), and the share of
the images that the judge took for their class before and still does. Then latent arithmetic as in DCGAN (Radford et al.
2015, §6.3.2): the average latent of three slanted images of one class, less that of three upright ones, plus that of
three upright ones of another.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from augmint.attributes import measure
from augmint.data import load_data
from augmint.generator import Generator
from augmint.images import synthetic_sheet_png
from augmint.latent_space import arithmetic
from augmint.sheets import contact_sheet
from augmint.traversals import edit_sheet, interpolation_sheet
from evaluation.classifier import train_classifier

AMOUNTS = (-1.5, -0.5, 0.5, 1.5)  # and the limit
SEED = 4_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="a conditional bundle's directory")
    parser.add_argument("data", help="what it was trained on, whole")
    parser.add_argument("--each", type=int, default=100, help="images of each class")
    parser.add_argument("--pictures", type=Path, help="a folder to draw into")
    arguments = parser.parse_args()

    generator = Generator(arguments.bundle, device="cpu", threads=1)
    names, edits = generator.class_names, generator.manifest.edits
    if edits is None or not names:
        raise SystemExit("this benchmark is of a conditional bundle with edits")
    data = load_data(arguments.data)
    shape = generator.manifest.image.shape
    images, labels = data.images("train", shape=shape)
    judge = train_classifier(images, labels, len(names), seed=7, steps=1500, augment="affine", sampler="balanced")
    reals, real_labels = data.images("test", shape=shape)
    print(f"judge: right on {np.mean(judge.predict(reals) == real_labels):.3f} of the {len(reals):,} test images")

    counts = dict.fromkeys(names, arguments.each)
    plain = generator.generate(counts, seed=SEED)
    right = judge.predict(plain.images) == plain.labels
    before = measure(plain.images)
    deviations = {name: _within(value, plain.labels) for name, value in before.items()}
    print(f"unedited: {right.mean():.3f} of {len(plain):,} images are taken for their class\n")
    print("attribute    R²     limit  amount  change  right way  class kept  most changed besides")
    for edit in edits.attributes:
        for amount in sorted({-edit.limit, edit.limit, *(amount for amount in AMOUNTS if abs(amount) < edit.limit)}):
            made = generator.generate(counts, seed=SEED, edit={edit.name: amount})
            after = measure(made.images)
            moved = {name: (after[name] - before[name]) / deviations[name] for name in before}
            kept = float((judge.predict(made.images) == made.labels)[right].mean())
            besides = max((name for name in moved if name != edit.name), key=lambda name: abs(moved[name].mean()))
            print(
                f"{edit.name:11}  {edit.r2:.2f}   {edit.limit:4g}   {amount:+5.1f}   {moved[edit.name].mean():+.2f}   "
                f"{(moved[edit.name] * amount > 0).mean():8.3f}   {kept:9.3f}   {besides} {moved[besides].mean():+.2f}"
            )
    for name, why in edits.dropped.items():
        print(f"no {name}: {why}")

    begun = time.process_time()
    for _ in range(5):
        generator.generate(counts, seed=SEED)
    unedited = time.process_time() - begun
    begun = time.process_time()
    for _ in range(5):
        generator.generate(counts, seed=SEED, edit={edits.attributes[0].name: 0.5})
    edited = time.process_time() - begun
    print(f"\nCPU for all images 5 times: {unedited:.2f} s unedited, {edited:.2f} s edited")

    sheet = _arithmetic(generator, plain.images, plain.labels, before["slant"])
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        some = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), 5)).round().astype(int)]
        pictures = {
            "edits.png": edit_sheet(generator, some, seed=SEED, index=3, columns=9),
            "interpolation.png": interpolation_sheet(generator, seed=SEED, a=3, b=8),
            "arithmetic.png": sheet,
        }
        for name, picture in pictures.items():
            (arguments.pictures / name).write_bytes(synthetic_sheet_png(picture))
            print(f"drew {arguments.pictures / name}")


def _within(value: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Standard deviation within classes."""
    means = np.array([value[labels == k].mean() for k in range(labels.max() + 1)])
    return float(np.sqrt(np.mean((value - means[labels]) ** 2)))


def _arithmetic(
    generator: Generator, images: NDArray[np.uint8], labels: NDArray[np.int64], slant: NDArray[np.float64]
) -> Image.Image:
    """Slanted minus upright of the first class, plus upright of each class: a row each, and what it comes to."""
    each = int((labels == 0).sum())  # the images are in the classes' order

    def upright_of(k: int) -> NDArray[np.int64]:
        return np.argsort(np.abs(slant[labels == k] - np.median(slant)))[:3]

    def latent(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        return generator.latents(chosen, seed=SEED)

    slanted, upright = np.argsort(slant[labels == 0])[-3:], upright_of(0)
    rows, gains = [], []
    for k, name in enumerate(generator.class_names):
        base = upright_of(k)
        made = generator.from_latents(arithmetic([latent(slanted), latent(base)], [latent(upright)]), name)
        average = generator.from_latents(arithmetic([latent(base)]), name)
        rows.append(np.concatenate([images[k * each + base], average, made]))
        gains.append(float((measure(made)["slant"] - measure(average)["slant"])[0]))
    asked = float(slant[slanted].mean() - slant[upright].mean())
    print(
        f"arithmetic: slanted − upright {generator.class_names[0]} is {asked:+.2f} of slant; added to upright images of"
    )
    print("  " + "  ".join(f"{name} {gain:+.2f}" for name, gain in zip(generator.class_names, gains, strict=True)))
    return contact_sheet(
        np.concatenate(rows),
        np.repeat(np.arange(len(rows)), 5),
        generator.class_names,
        per_class=5,
        columns=5,
        notes=["3, mean, + slant"] * len(rows),
    )


if __name__ == "__main__":
    main()
