"""How good is the demo's generator on its small classes? The judge has seen what the generator has not.

    make demo && python benchmarks/recipe.py demo-out/bundles/digits

The judge is trained on mnist5k's whole train split (350 a class, affine augmentation), of which the demo keeps 20 in
each of the classes 5-9; precision, recall, density and coverage (k = 5, a class at a time) are taken in its features,
against the 100 test images of each class and as many generated ones.
"""

from __future__ import annotations

import argparse

import numpy as np

from augmint.data import load_data
from augmint.generator import Generator
from evaluation.classifier import train_classifier
from evaluation.fidelity import measure
from examples.demo import SMALL_CLASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", help="of the demo's data: demo-out/bundles/digits")
    parser.add_argument("--seed", type=int, default=1, help="of the generated images")
    arguments = parser.parse_args()

    data = load_data("mnist5k")
    images, labels = data.images("train", shape=(28, 28, 1))
    judge = train_classifier(images, labels, len(data.class_names), seed=7, steps=1500, augment="affine")
    judge.name = "a small CNN trained on the whole train split"
    reals, real_labels = data.images("test", shape=(28, 28, 1))
    print(f"judge: right on {np.mean(judge.predict(reals) == real_labels):.3f} of the {len(reals):,} test images")

    for path in arguments.bundles:
        made = Generator(path, device="cpu").generate(dict.fromkeys(data.class_names, 100), seed=arguments.seed)
        report = measure(made.images, made.labels, reals, real_labels, data.class_names, features=judge, judge=judge)
        print(f"\n{path}\n{report.text()}")
        means = report.mean(SMALL_CLASSES)
        print(
            "small classes: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items() if value is not None)
        )


if __name__ == "__main__":
    main()
