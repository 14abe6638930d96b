"""What does rejecting images do to the demo's generator? Shares rejected, label fidelity and diversity by quality.

    make demo && python benchmarks/quality.py demo-out/bundles/digits

As in benchmarks/recipe.py the judge has seen what the generator has not: it is trained on mnist5k's whole train split.
Each quality is measured on the same seeds, 100 images a class and seed against the 100 test images of each class, and
the figures are means over seeds. Whether it helps a classifier is another question: `augmint evaluate` answers it.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from augmint.data import load_data
from augmint.generator import Generator
from augmint.quality import REASONS
from evaluation.classifier import train_classifier
from evaluation.fidelity import measure
from examples.demo import SMALL_CLASSES

QUALITIES = (
    "none",
    "labels",
    "labels:0.9",
    "copies",
    "realism:0.2",
    "realism:0.5",
    "labels,copies",
    "labels,copies,realism:0.1",
)
EACH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="of the demo's data: demo-out/bundles/digits")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds to average over")
    arguments = parser.parse_args()

    data = load_data("mnist5k")
    names = data.class_names
    images, labels = data.images("train", shape=(28, 28, 1))
    judge = train_classifier(images, labels, len(names), seed=7, steps=1500, augment="affine")
    judge.name = "a small CNN trained on the whole train split"
    reals, real_labels = data.images("test", shape=(28, 28, 1))
    print(f"judge: right on {np.mean(judge.predict(reals) == real_labels):.3f} of the {len(reals):,} test images")

    generator = Generator(arguments.bundle, device="cpu")
    print(f"\n{'':27}all classes                                      small classes")
    print(f"{'quality':27}rejected labels recall coverage  CPU-s/1,000   rejected labels recall coverage")
    rejected: dict[str, dict[str, np.ndarray]] = {}
    for quality in QUALITIES:
        figures: dict[tuple[str, str], list[float]] = {}
        totals = {name: np.zeros(1 + len(REASONS), dtype=np.int64) for name in names}
        seconds = 0.0
        for seed in range(1, arguments.seeds + 1):
            begun = time.process_time()
            made = generator.generate(dict.fromkeys(names, EACH), seed=seed, quality=quality)
            seconds += time.process_time() - begun
            report = measure(made.images, made.labels, reals, real_labels, names, features=judge, judge=judge)
            for part, chosen in (("all", names), ("small", SMALL_CLASSES)):
                for name, value in report.mean(chosen).items():
                    figures.setdefault((part, name), []).append(np.nan if value is None else value)
            for name in names:
                totals[name] += [made.generated[name], *made.rejected.get(name, (0,) * len(REASONS))]
        rejected[quality] = {name: counts[1:] / counts[0] for name, counts in totals.items()}

        shares = rejected[quality]
        rows = []
        for part, chosen in (("all", names), ("small", SMALL_CLASSES)):
            means = [np.mean(figures[part, name]) for name in ("label_fidelity", "recall", "coverage")]
            rows.append(f"{np.mean([shares[n].sum() for n in chosen]):8.3f} " + " ".join(f"{m:6.3f}" for m in means))
        pace = seconds / (EACH * len(names) * arguments.seeds) * 1000
        print(f"{quality:27}{rows[0]}    {pace:9.2f}   {rows[1]}", flush=True)

    print(f"\nshares rejected, {' / '.join(REASONS)}")
    for quality in QUALITIES[1:]:
        by_class = (f"{name} {'/'.join(f'{s:.3f}' for s in rejected[quality][name])}" for name in names)
        print(f"{quality}: " + ", ".join(by_class))


if __name__ == "__main__":
    main()
