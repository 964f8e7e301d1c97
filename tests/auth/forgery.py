"""Tokens that nobody should accept: each is made from the claims of a good one."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

KEY = "a signing key of the tests that is long enough"
HEADER = {"alg": "HS256", "kid": "test", "typ": "JWT"}
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""
JWK = '{"k":"c2VjcmV0","kty":"oct"}'

Claims = dict[str, Any]


def encode(part: Any) -> str:
    """A segment: base64url of JSON, or of text that only pretends to be."""
    data = part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(segment: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


def claims_of(token: str) -> Claims:
    """The payload of a token, not verified."""
    claims: Claims = decode(token.split(".")[1])
    return claims


def sign(payload: Any, header: Any = HEADER, *, key: str = KEY, hash: str = "HS256") -> str:  # noqa: A002
    """A token with a right signature over whatever header and payload."""
    signed = f"{encode(header)}.{encode(payload)}"
    signature = hmac.new(key.encode(), signed.encode(), HASHES[hash]).digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def unsigned(payload: Any, **header: Any) -> str:
    return f"{encode({**HEADER, **header})}.{encode(payload)}."


def _with(**changes: Any) -> Callable[[Claims], str]:
    """Signed rightly, with other claims; None leaves one out."""

    def forge(claims: Claims) -> str:
        return sign({name: value for name, value in {**claims, **changes}.items() if value is not None})

    return forge


def _headed(**changes: Any) -> Callable[[Claims], str]:
    """Signed rightly, with another header; None leaves a member out."""

    def forge(claims: Claims) -> str:
        return sign(claims, {name: value for name, value in {**HEADER, **changes}.items() if value is not None})

    return forge


def _detached(claims: Claims) -> str:
    header, _, signature = sign(claims, {**HEADER, "b64": False, "crit": ["b64"]}).split(".")
    return f"{header}..{signature}"


def _respelt(claims: Claims) -> str:
    """The same bytes with a spare bit set in the last character: 32 bytes leave four bits over."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = sign(claims)
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def _standard_alphabet(claims: Claims) -> str:
    """The same bytes in the alphabet of base64 instead of base64url."""
    tokens = (sign({**claims, "jti": str(uuid4())}) for _ in range(1000))
    header, payload, signature = next(token for token in tokens if {"-", "_"} & set(token.split(".")[2])).split(".")
    return f"{header}.{payload}.{signature.replace('-', '+').replace('_', '/')}"


SIGNATURES: dict[str, Callable[[Claims], str]] = {
    "no algorithm": lambda claims: unsigned(claims, alg="none"),
    "no algorithm, capital": lambda claims: unsigned(claims, alg="None"),
    "no algorithm, mixed": lambda claims: unsigned(claims, alg="nOnE"),
    "no algorithm with a signature": lambda claims: sign(claims, {**HEADER, "alg": "none"}),
    "an empty signature": unsigned,
    "HS384": lambda claims: sign(claims, {**HEADER, "alg": "HS384"}, hash="HS384"),
    "HS512": lambda claims: sign(claims, {**HEADER, "alg": "HS512"}, hash="HS512"),
    "RS256 with a public key": lambda claims: sign(claims, {**HEADER, "alg": "RS256"}, key=PUBLIC_KEY),
    "HS256 with a public key": lambda claims: sign(claims, key=PUBLIC_KEY),
    "HS256 with a JWK": lambda claims: sign(claims, {**HEADER, "jwk": json.loads(JWK)}, key=JWK),
    "another key": lambda claims: sign(claims, key="another signing key that is long enough"),
    "an empty key": lambda claims: sign(claims, key=""),
    "no alg in the header": _headed(alg=None),
    "an alg that is a list": _headed(alg=["HS256"]),
    "an alg that is null": lambda claims: sign(claims, {**HEADER, "alg": None}),
    "crit": _headed(crit=["x"]),
    "an empty crit": _headed(crit=[]),
    "b64 without crit": _headed(b64=False),
    "b64 with crit": _headed(b64=False, crit=["b64"]),
    "a detached payload": _detached,
    "an unknown kid": _headed(kid="other"),
    "no kid": _headed(kid=None),
    "a kid that is a path": _headed(kid="../../../../dev/null"),
    "a kid that is a number": _headed(kid=1),
    "a kid that is a list": _headed(kid=["test"]),
    "a header that is a list": lambda claims: sign(claims, [HEADER]),
    "a header that is no JSON": lambda claims: sign(claims, b"{alg:HS256}"),
    "a deep header": lambda claims: sign(claims, b'{"alg":"HS256","kid":"test","x":' + b"[" * 1100),
    "a padded segment": lambda claims: sign(claims) + "=",
    "a respelt last character": _respelt,
    "the alphabet of base64": _standard_alphabet,
    "two segments": lambda claims: sign(claims).rpartition(".")[0],
    "four segments": lambda claims: sign(claims) + ".e30",
    "an empty payload": lambda claims: ".".join((encode(HEADER), "", sign(claims).rpartition(".")[2])),
    "10 KiB": lambda claims: sign({**claims, "x": "x" * 7600}),
    "10 KiB of dots": lambda claims: "." * 10240,
    "dots alone": lambda claims: "..",
    "garbage": lambda claims: "garbage",
}

CLAIMS: dict[str, Callable[[Claims], str]] = {
    **{f"no {name}": _with(**{name: None}) for name in ("iss", "aud", "sub", "sid", "role", "type", "fresh")},
    **{f"no {name}": _with(**{name: None}) for name in ("iat", "exp", "jti")},
    "one claim more": _with(admin=True),
    "another issuer": _with(iss="somebody"),
    "issuers in a list": _with(iss=["project"]),
    "another audience": _with(aud="other-api"),
    "audiences in a list": _with(aud=["project-api", "other-api"]),
    "another type": _with(type="foo"),
    "a type that is a list": _with(type=["access"]),
    "a refresh token with a role": _with(type="refresh"),
    "a sub that is a number": _with(sub=1),
    "a sub that is SQL": _with(sub="1 OR 1=1"),
    "a sub in capitals": lambda claims: sign({**claims, "sub": claims["sub"].upper()}),
    "a sub in braces": lambda claims: sign({**claims, "sub": "{" + claims["sub"] + "}"}),
    "a sid that is a number": _with(sid=1),
    "a sid that is a list": _with(sid=[]),
    "a sid that is an object": _with(sid={}),
    "a sid that is no id": _with(sid="1"),
    "a sid without hyphens": lambda claims: sign({**claims, "sid": claims["sid"].replace("-", "")}),
    "a jti that is a number": _with(jti=1),
    "a jti that is no id": _with(jti="x"),
    "an exp in text": lambda claims: sign({**claims, "exp": str(claims["exp"])}),
    "an exp with a fraction": lambda claims: sign({**claims, "exp": claims["exp"] + 0.5}),
    "an exp beyond all years": _with(exp=10**12),
    "an exp beyond all clocks": _with(exp=10**17),
    "an exp beyond 64 bits": _with(exp=10**30),
    "an exp beyond numbers": lambda claims: sign(json.dumps({**claims, "exp": "N"}).replace('"N"', "1e400").encode()),
    "an exp that is a list": _with(exp=[]),
    "an exp that is NaN": _with(exp=float("nan")),
    "an exp that is infinite": _with(exp=float("inf")),
    "an iat to come": lambda claims: sign({**claims, "iat": claims["iat"] + 61}),
    "an iat in text": lambda claims: sign({**claims, "iat": str(claims["iat"])}),
    "an iat that is true": _with(iat=True),
    "an nbf to come": lambda claims: sign({**claims, "nbf": claims["exp"]}),
    "a payload that is a list": lambda claims: sign([claims]),
    "a payload that is null": lambda claims: sign(None),
    "a payload that is text": lambda claims: sign("claims"),
    "a payload that is no JSON": lambda claims: sign(b"{sub:1}"),
    "a payload with text after it": lambda claims: sign(json.dumps(claims).encode() + b"x"),
    "a payload that is no UTF-8": lambda claims: sign(json.dumps(claims).encode().replace(b"access", b"\xff\xfe")),
    "a deep payload": lambda claims: sign(b"[" * 1300),
    "deep objects in the payload": lambda claims: sign(b'{"a":' * 260),
}

FORGERIES = {**SIGNATURES, **CLAIMS}
