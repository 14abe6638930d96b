"""Are a critic's features worth having? The linear SVM of DCGAN, section 5, on few labelled images.

    python benchmarks/features.py [--only dcgan] [--run runs/mine] [--shots 20,100,350] [--json]

Radford et al. 2015 train a linear L2-SVM on the features of a discriminator that was trained without labels. Here a
critic is trained on all training images of mnist5k, without their labels; then, for each number of labelled images a
class, SVMs learn from its features, from raw pixels, and from the features of the same network as it was before
training (random weights, three draws): without that control one cannot tell what the training was worth, because
random convolutions are good features already.

All alike: features standardised by the training images (no labels needed), scikit-learn's LinearSVC (L2 penalty,
squared hinge), C chosen from one list on the validation images, accuracy on the test images; mean and standard
deviation over five draws of the labelled images (one alone where all are taken).
"""

from __future__ import annotations

import os

# One thread: the figures then do not depend on the machine's load. Before numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.data import DataSet, load_data  # noqa: E402
from augmint.data.records import SPLITS  # noqa: E402
from augmint.errors import AugmintError, UsageError  # noqa: E402
from benchmarks.record import made, save  # noqa: E402
from evaluation.tables import fixed_width  # noqa: E402
from training import Run, TrainRequest, load_critic, resume, train  # noqa: E402
from training.features import critic_features  # noqa: E402

OUT: Final = ROOT / "bench-families-out" / "features"
SHOTS: Final = (20, 100, 350)
"""Labelled images a class; mnist5k has 350 for training."""
STRENGTHS: Final = (1e-5, 1e-4, 1e-3, 1e-2)
"""C of the SVM, of which validation chooses."""
SEEDS: Final = 5
PIXELS: Final = "raw pixels"

Split = Mapping[str, NDArray[Any]]
"""Split → features float32 [N, D], or labels int64 [N]."""


@dataclass(frozen=True)
class Row:
    """`accuracy` and its standard deviation over seeds by shots, on `tested` test images; `strengths` the C that was
    chosen."""

    name: str
    width: int
    tested: int
    accuracy: dict[int, float]
    deviation: dict[int, float]
    validation: dict[int, float]
    strengths: dict[int, float]


def drawn(labels: NDArray[np.int64], shots: int, seed: int) -> NDArray[np.int64]:
    """Indices of `shots` images of each class, or of all there are."""
    rng = np.random.default_rng([seed, shots])
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in np.unique(labels)])


def measure(name: str, features: Sequence[Split], labels: Split, shots: Sequence[int], seeds: int = SEEDS) -> Row:
    """Fits and tests SVMs. `features` are several where there are several networks: seed s then takes the s-th."""
    scaled = []
    for one in features:
        mean, deviation = one["train"].mean(0), one["train"].std(0)
        scaled.append({split: (x - mean) / np.maximum(deviation, 1e-6) for split, x in one.items()})
    row = Row(name, scaled[0]["train"].shape[1], len(labels["test"]), {}, {}, {}, {})
    for many in shots:
        everything = many >= np.bincount(labels["train"]).max()
        number = len(features) if everything else seeds
        right = np.zeros((2, len(STRENGTHS), number))
        for seed in range(number):
            x = scaled[seed % len(scaled)]
            own = drawn(labels["train"], many, seed)
            for k, strength in enumerate(STRENGTHS):
                svm = LinearSVC(C=strength, dual=True, tol=1e-3, random_state=0)
                svm.fit(x["train"][own], labels["train"][own])
                for side, split in enumerate(("validation", "test")):
                    right[side, k, seed] = svm.score(x[split], labels[split])
        best = int(right[0].mean(1).argmax())
        row.accuracy[many] = float(right[1, best].mean())
        row.deviation[many] = float(right[1, best].std(ddof=1)) if number > 1 else 0.0
        row.validation[many] = float(right[0, best].mean())
        row.strengths[many] = STRENGTHS[best]
    return row


# ------------------------------------------------------------------------------------------------------- all


@dataclass(frozen=True)
class Trained:
    """A run whose critic is looked at. Nothing of its training saw a label."""

    words: str
    request: Mapping[str, Any]


RUNS: Final = {
    # DiffAugment's translation is what makes the difference to the untrained network: docs/log.md.
    "dcgan": Trained(
        "dcgan with DiffAugment",
        {
            "family": "dcgan",
            "steps": 2500,
            "settings": {
                "batch": 64,
                "width": 32,
                "upsampling": "upsample_conv",
                "learning_rate": 1e-3,
                "translation": 0.125,
            },
        },
    ),
    "augment": Trained(
        "augment without labels",
        {"family": "augment", "steps": 2000, "ignore_labels": True, "settings": {"reconstruction": 0.0}},
    ),
}
WORDS: Final = (
    "Radford et al. 2015, section 5: a linear SVM on what a discriminator sees. Two critics were trained on all",
    "training images of mnist5k without their labels; then SVMs learn from a few labelled ones. Beside them: raw",
    "pixels, and the same networks before training, without which one cannot tell what the training was worth. The",
    "same for all: standardised features, C chosen on the validation images from one list; accuracy on the test",
    f"images, mean ± standard deviation over {SEEDS} draws of labelled images (all of them at 350: over networks).",
)


def trained_run(name: str, out: Path) -> Run:
    """Kept where it is finished, gone on with where it was stopped."""
    place = out / name
    if (place / "config.json").is_file():
        return resume(place, progress=False)
    print(f"training {RUNS[name].words} …", file=sys.stderr, flush=True)
    request = TrainRequest(data="mnist5k", out=place, threads=1, tensorboard=False, **RUNS[name].request)
    return train(request, progress=False)


def features_of(run: Run, data: DataSet, networks: int = 3) -> tuple[Split, list[Split]]:
    """The features of the run's last critic, and of as many untrained networks of its kind."""
    critic, config = load_critic(run, "last")
    images = {split: data.images(split, shape=config.image_shape)[0] for split in SPLITS}
    fresh = []
    for seed in range(networks):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            untrained = config.make_family().critic().eval()
        fresh.append({split: critic_features(untrained, x, config.num_classes)[0] for split, x in images.items()})
    return {split: critic_features(critic, x, config.num_classes)[0] for split, x in images.items()}, fresh


def conclude(rows: Sequence[Row]) -> str:
    """In words, for the trained network that validation prefers: by how much it beats its untrained self, and whether
    that is more than chance."""
    pairs = [(row, rows[i + 1]) for i, row in enumerate(rows[:-1]) if rows[i + 1].name == f"{row.name}, untrained"]
    ours, control = max(pairs, key=lambda pair: sum(pair[0].validation.values()))
    said = []
    for shots, accuracy in ours.accuracy.items():
        gain = accuracy - control.accuracy[shots]
        of_images = (accuracy * (1 - accuracy) / ours.tested) ** 0.5
        margin = 2 * max(ours.deviation[shots], control.deviation[shots], of_images)
        verdict = "a margin" if gain > margin else "no margin" if gain > -margin else "worse"
        said.append(f"{100 * gain:+.1f} points at {shots} ({verdict})")
    return (
        f"Of the trained critics validation prefers {ours.name}. Against the same network untrained: "
        f"{', '.join(said)}; a margin is more than twice the largest of both standard deviations "
        "and the standard error of the test images."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--shots", default=",".join(map(str, SHOTS)), help="labelled images a class")
    parser.add_argument("--only", default=",".join(RUNS), help="of the trainings")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run of your own on mnist5k as well")
    parser.add_argument("--out", type=Path, default=OUT, help="where trainings are kept, and the figures beside it")
    parser.add_argument("--again", action="store_true", help="train anew")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    try:
        found = run(arguments)
    except AugmintError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else text(found))
    return 0


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        shots = [int(word) for word in arguments.shots.split(",")]
    except ValueError:
        raise UsageError(f"--shots {arguments.shots}: give numbers, as 20,100.") from None
    names = arguments.only.split(",") if arguments.only else []
    for name in names:
        if name not in RUNS:
            raise UsageError(f"--only {name}: name some of {', '.join(RUNS)}.")
        if arguments.again:
            shutil.rmtree(arguments.out / name, ignore_errors=True)
    runs = {RUNS[name].words: trained_run(name, arguments.out) for name in names}
    runs |= {path.resolve().name: Run.open(path) for path in arguments.run}
    data = load_data("mnist5k")
    shape = data.native_shape()
    loaded = {split: data.images(split, shape=shape) for split in SPLITS}
    labels = {split: y for split, (_, y) in loaded.items()}
    pixels = {split: x.reshape(len(x), -1).astype(np.float32) for split, (x, _) in loaded.items()}
    rows = [measure(PIXELS, [pixels], labels, shots)]
    for words, each in runs.items():
        print(f"{words} …", file=sys.stderr, flush=True)
        ours, fresh = features_of(each, data)
        rows += [measure(words, [ours], labels, shots), measure(f"{words}, untrained", fresh, labels, shots)]
    found = {
        "shots": shots,
        "words": list(WORDS),
        "rows": [asdict(row) for row in rows],
        "conclusion": conclude(rows) if runs else "",
        "made": made("torch"),
    }
    found = json.loads(json.dumps(found))  # keys as in the file
    if runs and names == list(RUNS):
        save(arguments.out.parent / "features.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def text(found: Mapping[str, Any]) -> str:
    lines = [["features", "number", *(f"{many} a class" for many in found["shots"]), "C"]]
    for row in found["rows"]:
        cells = [f"{row['accuracy'][str(n)]:.3f} ± {row['deviation'][str(n)]:.3f}" for n in found["shots"]]
        strengths = ", ".join(f"{row['strengths'][str(n)]:g}" for n in found["shots"])
        lines.append([row["name"], f"{row['width']:,}", *cells, strengths])
    return "\n".join([*fixed_width(lines, right=False), found["conclusion"]])


if __name__ == "__main__":
    raise SystemExit(main())
