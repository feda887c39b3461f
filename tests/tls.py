"""A cluster that speaks TLS only: a program of its own, since Ray reads how to guard itself once.

Usage: ``python tests/tls.py FOLDER`` makes a certificate there, runs a stage on such a cluster and prints
what came of it, and who else got an answer of the cluster.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import sys
from pathlib import Path

#: What any HTTP/2 client says first, and an empty frame of settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def certificate(folder: Path) -> None:
    """One that signs itself, for the addresses of a cluster of this machine."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test of gimlet_lab")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.IPAddress(ipaddress.ip_address(f"127.0.0.{last}")) for last in (1, 2)]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)


def is_answered(address: str, pem: str, key: str | None) -> bool:
    """Whether the cluster talks to who has this key, or none."""
    host, _, port = address.partition(":")
    context = ssl.create_default_context(cafile=pem)
    context.set_alpn_protocols(["h2"])
    if key is not None:
        context.load_cert_chain(pem, key)
    try:
        plain = socket.create_connection((host, int(port)), timeout=10)
        with plain, context.wrap_socket(plain, server_hostname=host) as talk:
            talk.sendall(HELLO)
            return talk.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def main(folder: Path) -> None:
    certificate(folder)
    pem, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    os.environ |= {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": pem,
        "RAY_TLS_SERVER_CERT": pem,
        "RAY_TLS_SERVER_KEY": key,
    }

    from placing import function, notebook, plan

    import gimlet_lab as gimlet

    fleet = gimlet.connect("ray")
    import ray

    address = ray.get_runtime_context().gcs_address
    book = notebook("import os\ndef where(x):\n    return os.getpid(), x\n")
    with gimlet.apply(plan((function("where"), "cpu/1"), over=fleet), namespace=book, backend="ray"):
        pid, value = book["where"](7)
    found = {
        "elsewhere": pid != os.getpid(),
        "value": value,
        "with key": is_answered(address, pem, key),
        "without key": is_answered(address, pem, None),
    }
    gimlet.disconnect()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
