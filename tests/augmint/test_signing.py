"""Signatures: what they cover, whom they are trusted from, and that nothing else is."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from augmint.bundle import read_bundle
from augmint.bundle_report import inspect_bundle
from augmint.errors import BundleError, UsageError
from augmint.generator import Generator
from augmint.signing import Key, make_key, read_key, read_trust, sign, signature_of
from tests.augmint.broken_bundles import read_manifest, write_manifest
from tests.tinybundle import write_tiny_bundle

WHEN = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


@pytest.fixture
def alice(tmp_path: Path) -> Key:
    return make_key("alice", tmp_path / "keys")[0]


def refused(path: Path, trust: Path) -> str:
    """The code with which a bundle is refused, before a session is opened."""
    with pytest.raises(BundleError) as error:
        Generator(path, device="cpu", trust=trust)
    with pytest.raises(BundleError) as same:
        read_trust(trust).check(read_bundle(path))
    assert same.value.code == error.value.code
    return error.value.code


def test_a_signed_bundle_is_the_same_bundle(bundle: Path, alice: Key, tmp_path: Path) -> None:
    before = Generator(bundle, device="cpu")
    made = sign(bundle, alice, now=WHEN)
    after = Generator(bundle, device="cpu", trust=tmp_path / "keys" / "alice.pub")
    assert after.digest == before.digest == made.digest
    assert (after.generate({"cat": 3}, seed=1).images == before.generate({"cat": 3}, seed=1).images).all()
    assert set(after.files.content) == set(before.files.content)
    found = signature_of(after.files)
    assert found == made
    assert (made.signer, made.key_id, made.signed) == ("alice", alice.id, "2026-05-04T03:02:01Z")
    assert pickle.loads(pickle.dumps(after)).digest == before.digest
    assert read_trust(tmp_path / "keys" / "alice.pub").check(after.files) == made


def test_it_is_plain_ed25519_over_what_is_documented(bundle: Path, alice: Key) -> None:
    """Whoever has this page and a library can check a signature without us."""
    import base64

    sign(bundle, alice, now=WHEN)
    document = json.loads((bundle / "signature.json").read_text())
    lines = [
        "augmint bundle signature 1",
        read_bundle(bundle).digest,
        alice.public,
        "alice",
        "2026-05-04T03:02:01Z",
        "",
    ]
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(document["key"]))
    public.verify(base64.b64decode(document["signature"]), "\n".join(lines).encode())


def test_only_what_a_trusted_key_signed_is_opened(bundle: Path, alice: Key, tmp_path: Path) -> None:
    mallory, _, hers = make_key("mallory", tmp_path / "keys")
    trusted = tmp_path / "keys" / "alice.pub"
    assert refused(bundle, trusted) == "bundle.unsigned"
    sign(bundle, mallory)
    assert refused(bundle, trusted) == "bundle.untrusted"
    both = tmp_path / "trusted.keys"
    both.write_text("# who makes our bundles\n\n" + trusted.read_text().strip() + "  # since May\n" + hers.read_text())
    Generator(bundle, device="cpu", trust=both)
    sign(bundle, alice)
    Generator(bundle, device="cpu", trust=trusted)
    # A name is worth nothing: another key may bear it.
    sign(bundle, make_key("alice", tmp_path / "other")[0])
    assert refused(bundle, trusted) == "bundle.untrusted"


def test_a_signature_is_of_one_bundle_and_its_manifest(bundle: Path, alice: Key, tmp_path: Path) -> None:
    trusted = tmp_path / "keys" / "alice.pub"
    sign(bundle, alice)
    other = write_tiny_bundle(tmp_path / "other", seed=9)
    shutil.copy(bundle / "signature.json", other)
    assert refused(other, trusted) == "bundle.bad-signature"
    document = read_manifest(bundle)
    document["identity"]["licence"] = "mine"
    write_manifest(bundle, document)
    assert refused(bundle, trusted) == "bundle.bad-signature"
    # Nor does it help to name the new digest.
    altered = json.loads((bundle / "signature.json").read_text()) | {"digest": read_bundle(bundle).digest}
    (bundle / "signature.json").write_text(json.dumps(altered))
    assert refused(bundle, trusted) == "bundle.bad-signature"
    assert Generator(bundle, device="cpu").digest == altered["digest"]  # where no signature is asked for


@pytest.mark.parametrize(
    "change",
    [
        {"signer": "bob"},
        {"signed": "2027-01-01T00:00:00Z"},
        {"signature": "A" * 86 + "=="},
        {"key": "A" * 43 + "="},
        {"algorithm": "none"},
        {"schema_version": 2},
        {"more": 1},
        {"signer": "two\nlines"},
        None,
    ],
    ids=str,
)
def test_an_altered_signature_is_none(bundle: Path, alice: Key, tmp_path: Path, change: dict[str, Any] | None) -> None:
    trusted = tmp_path / "keys" / "alice.pub"
    sign(bundle, alice)
    file = bundle / "signature.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    assert refused(bundle, trusted) == "bundle.bad-signature"
    with pytest.raises(BundleError):
        inspect_bundle(bundle)


def test_any_byte_of_a_signature_counts(bundle: Path, alice: Key, tmp_path: Path) -> None:
    made = sign(bundle, alice)
    trust = read_trust(tmp_path / "keys" / "alice.pub")
    whole = (bundle / "signature.json").read_text()
    for at in range(0, 86, 5):
        wrong = made.signature[:at] + ("B" if made.signature[at] != "B" else "C") + made.signature[at + 1 :]
        (bundle / "signature.json").write_text(whole.replace(made.signature, wrong))
        with pytest.raises(BundleError) as error:
            trust.check(read_bundle(bundle))
        assert error.value.code == "bundle.bad-signature"


def test_a_signature_is_a_small_regular_file_that_no_manifest_lists(bundle: Path, alice: Key, tmp_path: Path) -> None:
    sign(bundle, alice)
    file = bundle / "signature.json"
    text = file.read_text()
    file.write_text(" " * 5000 + text)
    with pytest.raises(BundleError, match=r"signature\.json is larger") as error:
        read_bundle(bundle)
    assert error.value.code == "bundle.too-large"
    (tmp_path / "elsewhere").write_text(text)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError) as error:
        read_bundle(bundle)
    assert error.value.code == "bundle.symlink"
    file.unlink()
    document = read_manifest(bundle)
    document["files"]["signature.json"] = document["files"]["README.md"]
    write_manifest(bundle, document)
    with pytest.raises(BundleError, match="neither the manifest itself nor a signature"):
        read_bundle(bundle)


def test_a_damaged_bundle_is_not_signed(bundle: Path, alice: Key) -> None:
    (bundle / "golden.npy").write_bytes(b"x")
    with pytest.raises(BundleError):
        sign(bundle, alice)
    assert not (bundle / "signature.json").exists()


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    key, secret, public = make_key("alice@lab", tmp_path / "new" / "keys")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert read_key(secret) == key
    assert public.read_text() == f"augmint-public-key {key.public} alice@lab\n"
    assert dict(read_trust(public).names) == {key.public: "alice@lab"}
    assert secret.read_text().split()[1] not in repr(key)
    before = secret.read_bytes()
    for name, says in (("alice@lab", "exists already"), ("a b", "cannot be a key's name"), ("../x", "cannot be")):
        with pytest.raises(UsageError, match=says):
            make_key(name, tmp_path / "new" / "keys")
    assert secret.read_bytes() == before


def test_files_of_keys_that_are_none_are_refused_and_never_quoted(alice: Key, tmp_path: Path) -> None:
    secret, public = (tmp_path / "keys" / name for name in ("alice.key", "alice.pub"))
    bad = tmp_path / "bad"
    for text, says in (
        ("", "holds no key"),
        ("# nobody yet\n", "holds no key"),
        (secret.read_text(), "holds a private key"),
        (public.read_text() + "ssh-ed25519 AAAA me\n", "line 2, is no key"),
        (public.read_text().replace(" alice", ""), "line 1, is no key"),
        ("ü", "no file of keys"),
    ):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=says) as error:
            read_trust(bad)
        assert secret.read_text().split()[1] not in str(error.value)
    for file, says in ((public, "holds no private key"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(UsageError, match=says):
            read_key(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_trust(tmp_path / "none")


def test_inspect_says_who_signed(bundle: Path, alice: Key, tmp_path: Path) -> None:
    assert "signed   no\n" in inspect_bundle(bundle).text()
    assert inspect_bundle(bundle).as_dict()["signature"] is None
    sign(bundle, alice, now=WHEN)
    report = inspect_bundle(bundle)
    assert (
        f"signed   2026-05-04T03:02:01Z by alice, key {alice.id}, which is worth what you know of it" in report.text()
    )
    assert report.files["signature.json"] == (bundle / "signature.json").stat().st_size
    trusted = inspect_bundle(bundle, trust=tmp_path / "keys" / "alice.pub")
    assert f"by alice, key {alice.id}, which is trusted" in trusted.text()
    assert trusted.as_dict()["signature"] == {
        "signer": "alice", "signed": "2026-05-04T03:02:01Z", "key": alice.id, "trusted": True,
    }  # fmt: skip
