"""What `augmint inspect BUNDLE` says: the bundle verified whole, then what it is and what was measured of it.

Opening it is the verification (`augmint.Generator`), golden samples included; critic and judge are opened besides.
Knows nothing of the command line: it returns a `BundleReport`, as a dict for programs or as text for people.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from augmint.bundle import MANIFEST, REPORT_PAGE, SIGNATURE, Codes, Manifest, Metric
from augmint.generator import Generator
from augmint.runtime import check_signature, open_session
from augmint.signing import Signature, signature_of

__all__ = ["BundleReport", "inspect_bundle"]

_FEW: Final = 50  # train images of a class, below which a generator is likely to copy
_LISTED: Final = 100
_SHEET: Final = "samples.png"


@dataclass(frozen=True, slots=True)
class BundleReport:
    """A bundle that opened.

    Attributes:
        path: the directory.
        digest: sha256 of the manifest.
        manifest: validated.
        device: what the golden samples were reproduced on.
        reproducibility: "exact" or "tolerance": how well they were, here.
        tolerance: grey levels; 0 where exact.
        files: name -> bytes, the manifest included.
        sheet: path of the sample sheet, or None.
        report: path of the evaluation's page, or None.
        remark: why "auto" chose the CPU, or "".
        signature: who signed it and when, or None.
        trusted: whether by a trusted key; None: nobody said whom to trust.
    """

    path: str
    digest: str
    manifest: Manifest
    device: str
    reproducibility: str
    tolerance: int
    files: dict[str, int]
    sheet: str | None
    report: str | None
    remark: str = ""
    signature: Signature | None = None
    trusted: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the manifest's own parts, and what was found on this machine."""
        manifest = self.manifest.model_dump(mode="json", exclude={"files", "schema_version", "kind"})
        return {
            "kind": "bundle",
            "path": self.path,
            "digest": self.digest,
            "verified": True,
            "device": self.device,
            "reproducibility": self.reproducibility,
            "tolerance": self.tolerance,
            **manifest,
            "report": self.report,
            "files": {name: {"bytes": size} for name, size in self.files.items()},
            "sheet": self.sheet,
            "remark": self.remark,
            "signature": self._signature(),
        }

    def _signature(self) -> dict[str, Any] | None:
        if self.signature is None:
            return None
        found = self.signature
        return {"signer": found.signer, "signed": found.signed, "key": found.key_id, "trusted": self.trusted}

    def text(self) -> str:
        """The report for people: plain text without markup, so print it with markup off."""
        m = self.manifest
        height, width, channels = m.image.shape
        split = ", ".join(f"{n:,} {name}" for name, n in m.data.split.items())
        exact = self.reproducibility == "exact"
        kept = "byte for byte" if exact else f"within {self.tolerance} grey levels"
        rows = [
            ("digest", self.digest),
            ("family", f"{m.architecture.family}, {m.architecture.parameters:,} parameters, step "
                       f"{m.architecture.checkpoint_step:,} ({m.architecture.images_seen:,} images seen)"),
            ("trained", f"{m.identity.trained}, run {m.identity.run}, augmint {m.identity.augmint_version}"),
            ("licence", m.identity.licence),
            ("signed", _signed(self.signature, self.trusted)),
            ("data", f"{m.data.name}: {split}; fingerprint {m.data.fingerprint[:16]}…"),
            *([("labels", _labels(m.codes))] if m.codes else []),
            ("image", f"{height}×{width}, {'colour' if channels == 3 else 'grey'}, uint8"),
            ("latent", f"{m.sampling.latent_dim} numbers, {m.sampling.algorithm}"),
            ("graph", f"opset {m.generator.opset}, {m.generator.precision}, optimised: {m.generator.optimisation}; "
                      + ", ".join(f"{name} {version}" for name, version in m.generator.versions.items())),
            ("critic", _critic(m)),
            ("quality", _offers(m)),
            ("edits", _edits(m)),
            ("here", f"{self.device}: golden samples reproduced {kept}" + (f" ({self.remark})" if self.remark else "")),
        ]  # fmt: skip
        lines = [f"{m.identity.name}: verified", "", *(f"{name:<9}{value}" for name, value in rows)]
        lines += ["", *self._classes(), "", *self._evidence()]
        lines += ["", "files", *_table([(name, f"{size:,} bytes") for name, size in self.files.items()])]
        if looks := [path for path in (self.sheet, self.report) if path]:
            lines += ["", f"look at {' and '.join(looks)}"]
        # A bundle is somebody else's words: nothing in them may steer a terminal.
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in "\n".join(lines))

    def _classes(self) -> list[str]:
        names, counts = self.manifest.class_names, self.manifest.data.class_counts
        if not names:
            return ["classes  none: unconditional"]
        figures = {(m.label, m.name): m for m in self.manifest.evidence.metrics if m.label is not None}
        columns = list(dict.fromkeys(name for _, name in figures))
        rows = [("class", "train", *(name.replace("_", " ") for name in columns))]
        for name in names[:_LISTED]:
            count = counts.get(name, 0)
            few = "few" if count < _FEW else ""
            values = (_figure(figures.get((name, column))) for column in columns)
            rows.append((_shown(name), f"{few} {count:,}".strip(), *values))
        lines = _table(rows)
        return lines if len(names) <= _LISTED else [*lines, f"  … and {len(names) - _LISTED} more"]

    def _evidence(self) -> list[str]:
        evidence = self.manifest.evidence
        overall = [metric for metric in evidence.metrics if metric.label is None]
        lines = ["evidence"]
        lines += _table([(m.name.replace("_", " "), _figure(m), f"n {m.n:,}", m.method) for m in overall])
        if not overall:
            lines.append("  no quality was measured at export")
        if evidence.parity is not None:
            parity = evidence.parity
            lines.append(
                f"  PyTorch and graph at most {parity.max_levels} grey level(s) apart, in {parity.share_differing:.1e} "
                "of the values"
            )
        if evidence.batch_invariance is not None:
            sizes = evidence.batch_invariance.batches
            lines.append(f"  the same bytes in batches of {', '.join(map(str, sizes))}")
        else:
            lines.append("  not checked, or not so: the same bytes at every batch size")
        if evidence.utility is None:
            lines.append("  whether the images help a classifier was not measured")
        else:
            lines.append(f"  {evidence.utility.sentence}")
        lines += [f"  warning: {warning}" for warning in evidence.warnings]
        return lines


def inspect_bundle(
    path: str | os.PathLike[str], *, device: str = "cpu", trust: str | os.PathLike[str] | None = None
) -> BundleReport:
    """Verify a bundle and report on it.

    Args:
        path: the bundle's directory.
        device: what to reproduce the golden samples on; see `augmint.Generator`.
        trust: a file of public keys, one of which must have signed it; None: whoever did.

    Raises:
        BundleError: the bundle was refused; `code` names the check. A signature that is wrong is refused in any case.
        DeviceError: the device cannot be had.
    """
    root = Path(path)
    generator = Generator(root, device=device, trust=trust)
    manifest, content = generator.manifest, generator.files.content
    if manifest.critic is not None:
        critic = manifest.critic
        session = open_session(content[critic.file], device="cpu", threads=1, optimisation=critic.optimisation)
        check_signature(session, critic.inputs, critic.outputs, root / critic.file)
    if any(reason == "" for reason in manifest.offers.values()):
        generator.the_judge()
    info = generator.info()
    sizes = {name: len(data) for name, data in content.items()}
    signature = signature_of(generator.files)
    signed = {} if generator.files.signature is None else {SIGNATURE: len(generator.files.signature)}
    return BundleReport(
        path=str(root),
        digest=generator.digest,
        manifest=manifest,
        device=info.device,
        reproducibility=info.reproducibility,
        tolerance=info.tolerance,
        files={MANIFEST: (root / MANIFEST).stat().st_size, **sizes, **signed},
        sheet=str(root / _SHEET) if _SHEET in content else None,
        report=str(root / REPORT_PAGE) if REPORT_PAGE in content else None,
        remark=generator.remark,
        signature=signature,
        trusted=None if trust is None else True,
    )


def _signed(signature: Signature | None, trusted: bool | None) -> str:
    if signature is None:
        return "no"
    known = "which is trusted" if trusted else "which is worth what you know of it: --trust FILE says whom to trust"
    return f"{signature.signed} by {signature.signer}, key {signature.key_id}, {known}"


def _figure(metric: Metric | None) -> str:
    return "–" if metric is None or metric.value is None else f"{metric.value:.3f}"


def _labels(codes: Codes) -> str:
    name, least = min(codes.purities.items(), key=lambda pair: pair[1])
    return (
        f"given after training to {codes.categories} categories found without them: purity {codes.purity:.3f} on "
        f"{codes.n:,} training images, the least {least:.3f} ({_shown(name)})"
    )


def _offers(manifest: Manifest) -> str:
    """Which images can be kept and rejected, and why others cannot."""
    have = [part for part, why in manifest.offers.items() if not why]
    lack: dict[str, list[str]] = {}
    for part, why in manifest.offers.items():
        if why:
            lack.setdefault(why, []).append(part)
    missing = "; ".join(f"no {' or '.join(parts)}: {why}" for why, parts in lack.items())
    return " ".join(filter(None, [", ".join(have) or "none", f"({missing})" if missing else ""]))


def _critic(manifest: Manifest) -> str:
    if manifest.critic is None:
        return "none"
    outputs = ", ".join(tensor.name for tensor in manifest.critic.outputs)
    names = manifest.critic_classes
    shown = ", ".join(map(_shown, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"{outputs} of {len(names)} classes: {shown}" if names else outputs


def _edits(manifest: Manifest) -> str:
    """What can be edited and how far, and why not the rest."""
    if manifest.edits is None:
        return "none (it was exported without)"
    have = [f"{name} ±{limit:g}" for name, limit in manifest.editable.items()]
    missing = "; ".join(f"no {name}: {why}" for name, why in manifest.edits.dropped.items())
    return " ".join(filter(None, [", ".join(have) or "none", f"({missing})" if missing else ""]))


def _shown(name: str) -> str:
    """A label on one line of a table."""
    text = " ".join(name.split())
    return text if len(text) <= 40 else text[:39] + "…"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Left-aligned names, right-aligned figures; a last column of prose is not padded."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell if i == len(row) - 1 and len(cell) > 24 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row[1:], widths[1:], strict=True), start=1)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
