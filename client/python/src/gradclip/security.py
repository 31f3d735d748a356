"""How a client proves who the server is, and itself."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Optional

import grpc


@dataclass(frozen=True)
class Tls:
    """TLS over TCP. Files are PEM, and are read when a client is made.

    ca_file: the authorities that may vouch for the server; None for gRPC's own list.
    cert_file, key_file: the client's own certificate and key, for servers that ask for one. Both or
        none.
    server_name: the name that the server's certificate must have; None for the host in the address.
    """

    ca_file: Optional[str] = None
    cert_file: Optional[str] = None
    key_file: Optional[str] = None
    server_name: Optional[str] = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError where a file can't be read."""
        ca, key, cert = (_read(file) for file in (self.ca_file, self.key_file, self.cert_file))
        return grpc.ssl_channel_credentials(ca, key, cert)


def _read(file: Optional[str]) -> Optional[bytes]:
    if file is None:
        return None
    with open(file, "rb") as opened:
        return opened.read()


def is_on_this_host(address: str) -> bool:
    """Whether what is sent to the address cannot leave this machine: a unix socket, or loopback."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Token:
    """A bearer token, given or in a file, which is read anew for each call."""

    def __init__(self, token: Optional[str], token_file: Optional[str]) -> None:
        if token is not None and token_file is not None:
            raise ValueError("token and token_file are both given; give one")
        self._token = token
        self._file = token_file

    def __bool__(self) -> bool:
        return self._token is not None or self._file is not None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """A call's metadata. Raises OSError for the file, ValueError where that has no token."""
        if not self:
            return ()
        token = self._token
        if self._file is not None:
            with open(self._file, encoding="ascii") as file:
                token = file.read().strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            where = f"token_file {self._file}" if self._file is not None else "token"
            raise ValueError(
                f"{where} is no token: it must be printable ASCII without spaces, and not empty"
            )
        return (("authorization", "Bearer " + token),)
