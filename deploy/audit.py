"""`make audit`: is everything pinned, and is anything that is pinned known to be vulnerable?

    python deploy/audit.py                      the pins alone; needs no network
    python deploy/audit.py PATH/TO/pip-audit    also looks the pins up, where pip-audit reaches a database

Exit codes: 0 nothing found; 1 something found; 3 the pins are in order, but vulnerabilities could not be looked up.

Not looked at: hashes (a pin is a version, not a file), and whether a version was withdrawn from its index.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
DEPLOYED = ROOT / "deploy" / "requirements.txt"
# Known to be vulnerable for years: a database that does not know of it was not asked.
CANARY = "jinja2==2.10"
FOUND, NOT_LOOKED_UP = 1, 3


def requirements(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def pins(path: Path) -> dict[str, str]:
    """Canonical name -> version, of what is pinned with == for this platform."""
    found = {}
    for requirement in requirements(path):
        if requirement.marker is None or requirement.marker.evaluate():
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{path.name}: {requirement} is no pin"
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def needed(wanted: Iterable[Requirement]) -> Iterator[str]:
    """Canonical names of `wanted` and, as far as they are installed, of all that they need on this platform."""
    waiting, seen = list(wanted), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            try:
                inner = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            for child in map(Requirement, inner):
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    waiting.append(child)


def of_the_project() -> list[Requirement]:
    """What augmint's extras ask for, all of them but `cuda`, whose libraries this machine may not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name, group in extras.items() if name != "cuda" for text in group)]
    found = [Requirement(text) for text in texts]
    return [r for r in found if r.name != "augmint" and (r.marker is None or r.marker.evaluate())]


def unpinned() -> list[str]:
    """What is wrong with the pins, a sentence each."""
    constraints, deployed = pins(CONSTRAINTS), pins(DEPLOYED)
    problems = []
    for name in sorted(set(needed(of_the_project()))):
        if name not in constraints:
            problems.append(f"{name} is needed and not pinned in constraints.txt")
            continue
        try:
            installed = Version(metadata.version(name)).public  # PyTorch's has the processor's kind after it
        except metadata.PackageNotFoundError:
            continue
        if installed != constraints[name]:
            problems.append(f"{name} {installed} is installed, and constraints.txt pins {constraints[name]}")
    for name, version in sorted(deployed.items()):
        if constraints.get(name) != version:
            problems.append(
                f"deploy/requirements.txt pins {name} {version}, and constraints.txt {constraints.get(name)}"
            )
    # The libraries of CUDA come with onnxruntime-gpu's own extras, where they are wanted.
    plain = [Requirement(r.name) for r in requirements(DEPLOYED) if r.marker is None or r.marker.evaluate()]
    for name in sorted(set(needed(plain)) - deployed.keys()):
        problems.append(f"{name} comes with the Bento and is not pinned in deploy/requirements.txt")
    return problems


def look_up(tool: str, lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Known vulnerabilities of these pins, a sentence each; and the names that could not be looked up."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pins.txt")
        file.write_text("\n".join(lines), encoding="utf-8")
        command = [tool, "--no-deps", "--disable-pip", "--format", "json", "--requirement", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return [], [f"{tool}: {error.strerror}"]
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], [done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{tool} said nothing"]
    found = [
        f"{one['name']} {one['version']}: {', '.join(v['id'] for v in one['vulns'])}"
        for one in dependencies
        if one.get("vulns")
    ]
    # pip-audit itself calls this a success.
    return found, [one["skip_reason"] for one in dependencies if "skip_reason" in one]


def main(tool: str | None) -> int:
    problems = unpinned()
    for problem in problems:
        print(problem)
    if tool is None:
        return FOUND if problems else 0
    known, _ = look_up(tool, [CANARY])
    if not known:
        print(
            f"vulnerabilities could not be looked up: {Path(tool).name} reaches no database that knows of {CANARY}'s.",
            file=sys.stderr,
        )
        return FOUND if problems else NOT_LOOKED_UP
    found, skipped = look_up(tool, (f"{name}=={version}" for name, version in pins(CONSTRAINTS).items()))
    for vulnerable in found:
        print(vulnerable)
    for reason in skipped:
        print(f"not looked up: {reason}", file=sys.stderr)
    if problems or found:
        return FOUND
    return NOT_LOOKED_UP if skipped else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1] if len(sys.argv) > 1 else None))
