"""Tokens and TLS against a real server."""

import array
import dataclasses
import hashlib
import subprocess

import gradclip
import pytest

GRADIENT = [array.array("f", [3, 4])]


@pytest.fixture
def token_server(start_server, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"trainer {hashlib.sha256(b'the-right-one').hexdigest()}\n")
    tokens.chmod(0o600)
    return start_server(f"--auth-token-file={tokens}")


@pytest.fixture
def certificates(tmp_path):
    """ca.pem, and by it server.pem and client.pem with their keys, for the name gradclip.test."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made = ["-keyout", "ca.key", "-out", "ca.pem", "-days", "1"]
    openssl("req", "-x509", *key, *made, "-subj", "/CN=authority")
    (tmp_path / "names").write_text("subjectAltName=DNS:gradclip.test")
    for name in ("server", "client"):
        made = ["-keyout", f"{name}.key", "-out", f"{name}.csr"]
        openssl("req", *key, *made, "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "1"]
        openssl("x509", "-req", *files, *signed)
    return tmp_path


def test_a_token_lets_in(token_server, tmp_path):
    with gradclip.connect(token_server.address, token="the-right-one") as client:
        assert client.compute_norm(GRADIENT).total_norm == 5
    (tmp_path / "token").write_text("the-right-one\n")
    with gradclip.connect(token_server.address, token_file=str(tmp_path / "token")) as client:
        assert client.compute_norm(GRADIENT).total_norm == 5


@pytest.mark.parametrize("more", [{}, {"token": "a-wrong-one"}])
def test_without_the_right_token_the_error_says_what_to_give(token_server, more):
    with gradclip.connect(token_server.address, **more) as client:
        with pytest.raises(gradclip.AccessError, match="token") as caught:
            client.compute_norm(GRADIENT)
    assert caught.value.code == "UNAUTHENTICATED" and isinstance(caught.value, PermissionError)
    assert "a-wrong-one" not in str(caught.value)


def test_a_token_file_without_a_token_is_refused(token_server, tmp_path):
    (tmp_path / "token").write_text("\n")
    with gradclip.connect(token_server.address, token_file=str(tmp_path / "token")) as client:
        with pytest.raises(ValueError, match="token_file"):
            client.compute_norm(GRADIENT)


def test_tls(start_server, certificates):
    server = start_server(
        f"--tls-cert={certificates}/server.pem", f"--tls-key={certificates}/server.key"
    )
    tls = gradclip.Tls(ca_file=f"{certificates}/ca.pem", server_name="gradclip.test")
    with gradclip.connect(server.address, tls=tls) as client:
        assert client.compute_norm(GRADIENT).total_norm == 5
    with gradclip.connect(server.address, tls=True, retries=0) as client:
        with pytest.raises(
            gradclip.ServerUnavailable
        ):  # gRPC's word for a certificate that is not trusted
            client.compute_norm(GRADIENT)
    with pytest.raises(ValueError, match="go together"):
        gradclip.Tls(cert_file="client.pem")


def test_a_client_s_certificate_lets_in(start_server, certificates):
    server = start_server(
        f"--tls-cert={certificates}/server.pem",
        f"--tls-key={certificates}/server.key",
        f"--tls-client-ca={certificates}/ca.pem",
    )
    trusting = gradclip.Tls(ca_file=f"{certificates}/ca.pem", server_name="gradclip.test")
    own = dataclasses.replace(
        trusting,
        cert_file=f"{certificates}/client.pem",
        key_file=f"{certificates}/client.key",
    )
    with gradclip.connect(server.address, tls=own) as client:
        assert client.compute_norm(GRADIENT).total_norm == 5
    with gradclip.connect(server.address, tls=trusting, retries=0) as client:
        with pytest.raises((gradclip.ServerUnavailable, gradclip.AccessError)):
            client.compute_norm(GRADIENT)
    with pytest.raises(OSError, match="none.pem"):
        missing = dataclasses.replace(own, cert_file=f"{certificates}/none.pem")
        gradclip.connect(server.address, tls=missing)
