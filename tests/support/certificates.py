"""Certificates for tests, made here: neither openssl nor another package need be installed."""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
from datetime import UTC, datetime, timedelta

# The curve P-256, y^2 = x^3 - 3x + b, and its base point.
_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


class Authority:
    """An authority that issues certificates; `certificate` is its own file.

    `strict=False`: as Redis's utils/gen-test-certs.sh makes them, without key identifiers and, for the authority,
    without a key usage. Python 3.13 refuses those unless VERIFY_X509_STRICT is taken out.
    """

    def __init__(self, folder, *, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._strict, self._key = folder, strict, _Key()
        usage = [_extension("2.5.29.15", _bits(0b00000110, unused=1))] if strict else []
        identifier = [_subject_identifier(self._key)] if strict else []
        extensions = [_extension("2.5.29.19", _sequence(b"\x01\x01\xff"), critical=True), *usage, *identifier]
        self.pem = ssl.DER_cert_to_PEM_cert(_certificate("authority", self._key, "authority", self._key, extensions))
        self.certificate = folder / "authority.pem"
        self.certificate.write_text(self.pem)

    def issue(self, name, *hosts):
        """The files of a certificate for these hosts, and of its key."""
        key = _Key()
        names = b"".join(_tagged(0x82, host.encode()) for host in hosts)
        extensions = [_extension("2.5.29.15", _bits(0b10100000, unused=5))]
        extensions += [_extension("2.5.29.17", _sequence(names))] if hosts else []
        if self._strict:
            identifier = _sequence(_tagged(0x80, self._key.identifier))
            extensions += [_subject_identifier(key), _extension("2.5.29.35", identifier)]
        der = _certificate(name, key, "authority", self._key, extensions)
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_text(ssl.DER_cert_to_PEM_cert(der))
        private.write_text(key.pem())
        return certificate, private


class _Key:
    def __init__(self):
        self._secret = secrets.randbelow(_N - 1) + 1
        x, y = _times(self._secret, _G)
        self.public = b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big")
        self.identifier = hashlib.sha1(self.public).digest()

    def sign(self, data):
        number = int.from_bytes(hashlib.sha256(data).digest(), "big")
        nonce = secrets.randbelow(_N - 1) + 1
        r = _times(nonce, _G)[0] % _N
        return _sequence(_integer(r), _integer(pow(nonce, -1, _N) * (number + r * self._secret) % _N))

    def pem(self):
        curve, public = _tagged(0xA0, _oid("1.2.840.10045.3.1.7")), _tagged(0xA1, _bit_string(self.public))
        der = _sequence(_integer(1), _tagged(4, self._secret.to_bytes(32, "big")), curve, public)
        text = base64.encodebytes(der).decode()
        return f"-----BEGIN EC PRIVATE KEY-----\n{text}-----END EC PRIVATE KEY-----\n"


def _times(factor, point):
    total = None
    while factor:
        if factor & 1:
            total = _plus(total, point)
        point = _plus(point, point)
        factor >>= 1
    return total


def _plus(one, other):
    if one is None:
        return other
    if one == other:
        slope = 3 * (one[0] ** 2 - 1) * pow(2 * one[1], -1, _P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _P)
    x = (slope**2 - one[0] - other[0]) % _P
    return x, (slope * (one[0] - x) - one[1]) % _P


def _certificate(subject, key, issuer, issuer_key, extensions):
    algorithm = _sequence(_oid("1.2.840.10045.4.3.2"))  # ecdsa-with-SHA256
    now = datetime.now(UTC)
    validity = _sequence(*(_tagged(0x17, f"{now + timedelta(days=days):%y%m%d%H%M%SZ}".encode()) for days in (-1, 2)))
    kind = _sequence(_oid("1.2.840.10045.2.1"), _oid("1.2.840.10045.3.1.7"))
    body = _sequence(
        _tagged(0xA0, _integer(2)),
        _integer(secrets.randbits(64) + 1),
        algorithm,
        _name(issuer),
        validity,
        _name(subject),
        _sequence(kind, _bit_string(key.public)),
        _tagged(0xA3, _sequence(*extensions)),
    )
    return _sequence(body, algorithm, _bit_string(issuer_key.sign(body)))


def _name(text):
    return _sequence(_tagged(0x31, _sequence(_oid("2.5.4.3"), _tagged(0x0C, text.encode()))))


def _subject_identifier(key):
    return _extension("2.5.29.14", _tagged(4, key.identifier))


def _extension(oid, value, *, critical=False):
    return _sequence(_oid(oid), *([b"\x01\x01\xff"] if critical else []), _tagged(4, value))


def _tagged(tag, content):
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts):
    return _tagged(0x30, b"".join(parts))


def _integer(number):
    return _tagged(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _bits(byte, *, unused):
    return _tagged(3, bytes([unused, byte]))


def _bit_string(data):
    return _tagged(3, b"\x00" + data)


def _oid(text):
    first, second, *rest = map(int, text.split("."))
    encoded = bytes([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.insert(0, 0x80 | (number & 0x7F))
        encoded += bytes(digits)
    return _tagged(6, encoded)
