"""Signatures of released packages: OpenSSF Model Signing over every file of a package, by the plant's own key.

Hashes in a manifest prove that a package is whole; only a signature proves that this plant released it. The signature
is a Sigstore bundle (https://github.com/sigstore/model-transparency) by an elliptic key (NIST P-256), kept beside the
package and never part of it. Whatever puts a package into service checks it first, over the very bytes that it loads.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import InfrastructureFault, NotFound, PackageDefect
from aifactory.packaging import Package, open_package, read_package
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    from aifactory.factory import Factory
    from aifactory.settings import Settings
    from aifactory.store import Store

SIGNATURE_FILE = "model.sig"


def new_keys() -> tuple[str, str]:
    """A private and its public key, each PEM in base64, fit for one line of the secrets file."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode(), base64.b64encode(public).decode()


def sign_package(settings: Settings, store: Store, prefix: str) -> None:
    """Sign a package where it lies; one that is signed stays as it is.

    Raises:
        InfrastructureFault: there is no key to sign with.
    """
    if store.head(f"{prefix}/{SIGNATURE_FILE}"):
        return
    key = settings.signing_key.get_secret_value()
    if not key:
        raise InfrastructureFault(
            ReasonCode.SIGNING_KEY_MISSING, "AIF_SIGNING_KEY is empty: the plant generates it at its start (`make up`)"
        )
    store.put(f"{prefix}/{SIGNATURE_FILE}", sign(read_package(store, prefix)[1], key))


def read_released(settings: Settings, store: Store, prefix: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and files of a released package, its hashes and its signature verified.

    Raises:
        PackageDefect: it is not signed by this plant, or not whole.
        InfrastructureFault: the store did not answer.
    """
    manifest, bodies = read_package(store, prefix)
    try:
        signature = store.get(f"{prefix}/{SIGNATURE_FILE}")
    except NotFound as error:
        raise _refused(f"{store.uri(prefix)} has no {SIGNATURE_FILE}") from error
    verify(bodies, signature, settings.verifying_key, store.uri(prefix))
    return manifest, bodies


def load_released(f: Factory, prefix: str) -> Package:
    """Read, verify and open a released package.

    Raises:
        PackageDefect: as of `read_released`, or the graph does not give the trained model's outputs.
        InfrastructureFault: the store did not answer.
    """
    return open_package(*read_released(f.settings, f.store, prefix), f.settings.threads, prefix)


def sign(bodies: Mapping[str, bytes], private_key: str) -> bytes:
    """The signature over files, by name.

    Args:
        bodies: content of every file.
        private_key: PEM in base64.
    """
    from model_signing import signing

    with _laid_out(bodies, private_key) as (model, key, signature):
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key).sign(model, signature)
        return signature.read_bytes()


def verify(bodies: Mapping[str, bytes], signature: bytes, public_key: str, what: str) -> None:
    """Hold files against their signature: each as it was signed, none missing, none more.

    Args:
        bodies: content of every file.
        signature: what `sign` made.
        public_key: PEM in base64.
        what: for the message.

    Raises:
        PackageDefect: PACKAGE_UNSIGNED.
    """
    from model_signing import verifying

    with _laid_out(bodies, public_key) as (model, key, place):
        place.write_bytes(signature)
        try:
            config = verifying.Config()  # type: ignore[no-untyped-call]
            config.use_elliptic_key_verifier(public_key=key).verify(model, place)
        except Exception as error:  # whatever a forged bundle makes its parser raise, it is no signature of ours
            raise _refused(f"{what}: {error}") from error


@contextmanager
def _laid_out(bodies: Mapping[str, bytes], key: str) -> Iterator[tuple[Path, Path, Path]]:
    """The library takes paths: a folder of the files, the key, and where the signature is or will be."""
    with tempfile.TemporaryDirectory() as folder:
        model, place = Path(folder, "model"), Path(folder, "key.pem")
        model.mkdir()
        for name, body in bodies.items():
            (model / name).write_bytes(body)
        place.touch(mode=0o600)
        place.write_bytes(base64.b64decode(key))
        yield model, place, Path(folder, SIGNATURE_FILE)


def _refused(what: str) -> PackageDefect:
    return PackageDefect(
        ReasonCode.PACKAGE_UNSIGNED, f"{what}; it is not what this plant released: do not use it, train the order again"
    )
