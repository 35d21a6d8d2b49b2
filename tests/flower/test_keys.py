"""Certificates and keys of a deployment."""

from __future__ import annotations

import pytest

pytest.importorskip("cryptography", reason='needs Flower: pip install "fedfault[flower]"')

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedfault.errors import UserError
from fedfault.flower.keys import make_keys


def test_the_servers_certificate_is_signed_by_the_authority_and_names_its_hosts(tmp_path):
    make_keys(tmp_path, ["link.example.org", "10.0.0.7"], ["n0"])
    ca, server = (x509.load_pem_x509_certificate((tmp_path / f).read_bytes()) for f in ("ca.crt", "server.pem"))
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["link.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_every_site_has_a_pair_of_its_own_that_only_its_owner_can_read(tmp_path):
    files = make_keys(tmp_path / "keys", ["localhost"], ["a", "b"])
    assert [f.name for f in files] == ["ca.crt", "server.pem", "server.key", "a", "a.pub", "b", "b.pub"]
    pairs = []
    for name in ("a", "b"):
        private = load_ssh_private_key((tmp_path / "keys" / name).read_bytes(), None)
        public = load_ssh_public_key((tmp_path / "keys" / f"{name}.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert private.public_key() == public
        pairs.append(public.public_numbers())
    assert pairs[0] != pairs[1]
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)


def test_keys_that_are_there_are_not_overwritten(tmp_path):
    (tmp_path / "n0.pub").write_text("mine")
    with pytest.raises(UserError, match=r"n0\.pub exists already"):
        make_keys(tmp_path, ["localhost"], ["n0"])
    assert [f.name for f in tmp_path.iterdir()] == ["n0.pub"]
