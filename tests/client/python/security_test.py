"""Tokens and TLS against a real server."""

import array
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
    """ca.pem, and server.pem with its server.key for the name gradclip.test."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=authority",
        "-days",
        "1",
    )
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (tmp_path / "names").write_text("subjectAltName=DNS:gradclip.test")
    openssl(
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "server.pem",
        "-days",
        "1",
        "-extfile",
        "names",
    )
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
