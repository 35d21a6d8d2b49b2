"""Certificates and keys of a deployment: an authority of its own, the SuperLink's certificate, a key pair for every site."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from fedfault.errors import UserError

DAYS = 365  # that certificates are valid


def make_keys(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> list[Path]:
    """Write ca.crt, server.pem and server.key, and NAME and NAME.pub for every site; return the files, in that order.

    hosts: names and IP addresses under which sites reach the SuperLink. The authority's own key is not kept: to add a host,
    make all anew. Raises `UserError` before anything is written if a file is there already.
    """
    files = [
        folder / name for name in ("ca.crt", "server.pem", "server.key", *(f for s in sites for f in (s, f"{s}.pub")))
    ]
    if there := [f for f in files if f.exists()]:
        raise UserError(f"{there[0]} exists already; give another folder, or take the old keys away")
    folder.mkdir(parents=True, exist_ok=True)
    authority, server = _make_key(), _make_key()
    ca = _sign_certificate("fedfault federation", "fedfault federation", authority, authority, None)
    public = [ca, _sign_certificate(hosts[0], "fedfault federation", server, authority, hosts)]
    contents = [c.public_bytes(Encoding.PEM) for c in public] + [_encode_private(server, PrivateFormat.PKCS8)]
    for key in (_make_key() for _ in sites):
        contents += [
            _encode_private(key, PrivateFormat.OpenSSH),
            key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        ]
    for file, content in zip(files, contents, strict=True):
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(content)
    return files


def _make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _encode_private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    written: bytes = key.private_bytes(Encoding.PEM, form, NoEncryption())
    return written


def _sign_certificate(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str] | None,
) -> x509.Certificate:
    """Sign a certificate for hosts, or the authority's own for None."""
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
    made = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=DAYS))
    made = made.add_extension(x509.BasicConstraints(hosts is None, None), critical=True)
    if hosts is None:
        uses = dict.fromkeys(
            ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
        )
        uses |= {"digital_signature": True, "content_commitment": False, "key_cert_sign": True, "crl_sign": True}
        made = made.add_extension(x509.KeyUsage(**uses), critical=True)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    else:
        made = made.add_extension(x509.SubjectAlternativeName([_make_host_name(h) for h in hosts]), critical=False)
        origin = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        made = made.add_extension(origin, critical=False)
    return made.sign(signer, hashes.SHA256())


def _make_host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
