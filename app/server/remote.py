"""Pictures by URL, only from public addresses: the guard looks at the address that is really connected to.

A name is looked up once, and the very address that was checked is connected to, so that a second answer of the same
name server can't lead elsewhere. Redirects pass the same guard. Proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from ...pipelines.errors import SfumatoError
from ..faults import refuse

SECONDS = 20.0
REDIRECTS = 3
CHUNK = 65536
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address is of the open internet, seen through the ways to write an IPv4 address as IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found.teredo is not None:
            inner = found.teredo[1]
        if found in NAT64:
            inner = ipaddress.IPv4Address(found.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast and not found.is_reserved


def fetch(url: str, most: int, field: str = "url", *, allowed: Callable[[str], bool] = is_public) -> bytes:
    """The bytes behind a URL, at most so many."""
    until = time.monotonic() + SECONDS
    for _ in range(1 + REDIRECTS):
        found = _once(url, most, field, until, allowed)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise refuse(field, url, f"leads on more than {REDIRECTS} times; give the last address")


def _once(url: str, most: int, field: str, until: float, allowed: Callable[[str], bool]) -> bytes | str:
    """The bytes, or where it leads on to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise refuse(field, url, "is no URL; write it as in https://example.com/a.png") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or not url.isascii():
        raise refuse(field, url, "is no plain http or https URL; write it as in https://example.com/a.png")
    secure = parts.scheme == "https"
    try:
        link = _connected(host, port or (443 if secure else 80), url, field, until, allowed)
        with link:
            wire = ssl.create_default_context().wrap_socket(link, server_hostname=host) if secure else link
            connection = http.client.HTTPConnection(host, port or (443 if secure else 80))
            connection.sock = wire
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "sfumato"})
            answer = connection.getresponse()
            location = answer.getheader("Location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                return location
            if answer.status != 200:
                raise refuse(field, url, f"answers {answer.status}; give one that answers with a picture")
            return _body(answer, wire, most, url, field, until)
    except SfumatoError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise refuse(field, url, f"can't be fetched ({reason}); upload the picture instead") from error


def _connected(
    host: str, port: int, url: str, field: str, until: float, allowed: Callable[[str], bool]
) -> socket.socket:
    failed: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not allowed(str(address[0])):
            raise refuse(field, url, "is at an address that is not public; upload the picture instead")
        link = socket.socket(family, kind, protocol)
        link.settimeout(max(0.1, until - time.monotonic()))
        try:
            link.connect(address)
            reached = str(link.getpeername()[0])
        except OSError as error:
            link.close()
            failed = error
            continue
        if allowed(reached):
            return link
        link.close()
        raise refuse(field, url, "is at an address that is not public; upload the picture instead")
    raise failed or OSError("the name has no address")


def _body(
    answer: http.client.HTTPResponse, wire: socket.socket, most: int, url: str, field: str, until: float
) -> bytes:
    found = bytearray()
    while chunk := answer.read1(CHUNK):
        found += chunk
        if len(found) > most:
            raise refuse(field, url, f"has more than {most} bytes; give a smaller picture")
        left = until - time.monotonic()
        if left <= 0:
            raise refuse(field, url, f"takes more than {SECONDS:g} s; upload the picture instead")
        wire.settimeout(left)
    return bytes(found)
