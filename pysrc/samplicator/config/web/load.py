"""Reads a web-config file: the YAML of Prometheus's exporter-toolkit (docs/web-configuration.md there).

Purpose: file -> WebConfig, and all problems of it, each with its line and what to write instead. Invariants: what
exporter-toolkit refuses is refused here too, and what this program cannot do is an error and never ignored, unless that
is as safe. Called by config.toml.load. Never raises for any content of the file; never resolves a name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from samplicator.config.draft import Suggest
from samplicator.config.files import read_regular
from samplicator.config.web.model import ClientCert, Tls, WebConfig
from samplicator.errors import Problem

MAX_BYTES: Final = 1 << 20
MAX_USERS: Final = 1000
BCRYPT: Final = re.compile(r"\$2[abxy]\$(0[4-9]|1[0-9]|2[0-9]|3[01])\$[./A-Za-z0-9]{53}")
MAX_COST: Final = 15
"""A check at this cost takes seconds; the next ones take so long that nobody would wait for the answer."""
HEADERS: Final = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
CLIENT_AUTH: Final[Mapping[str, ClientCert]] = {
    "NoClientCert": "none",
    "VerifyClientCertIfGiven": "optional",
    "RequireAndVerifyClientCert": "required",
}
UNVERIFIED: Final = ("RequestClientCert", "RequireAnyClientCert")
VERSIONS: Final = ("TLS10", "TLS11", "TLS12", "TLS13")
CURVES: Final = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
TLS13_CIPHERS: Final = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
CIPHERS: Final = {
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
TABLES: Final = ("tls_server_config", "http_server_config", "basic_auth_users")
TLS_KEYS: Final = (
    *("cert_file", "key_file", "client_ca_file", "client_auth_type", "client_allowed_sans", "min_version"),
    *("max_version", "cipher_suites", "prefer_server_cipher_suites", "curve_preferences"),
)
INLINE: Final = {"cert": "cert_file", "key": "key_file", "client_ca": "client_ca_file"}
_KINDS: Final = {"ScalarNode": "a value", "SequenceNode": "a list", "MappingNode": "a table"}


def load_web(path: str) -> tuple[WebConfig | None, list[Problem], list[Problem]]:
    """The file at `path` (None when it has errors), its errors and its warnings. Raises OSError or ValueError for a
    file that cannot be read.
    """
    data = read_regular(path, MAX_BYTES)
    reader = _Reader(path)
    web = reader.read(data)
    reader.errors.sort(key=lambda problem: problem.line)
    return web if not reader.errors else None, reader.errors, reader.warnings


class _Reader:
    """Reads one file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.suggest = Suggest()
        self.lines: dict[str, int] = {}  # of the keys of TLS; "" = of the table

    def read(self, data: bytes) -> WebConfig | None:
        root = self._root(data)
        if root is None:
            return None
        tables = self._table(root, "", TABLES)
        tls = self._tls(tables.get("tls_server_config"))
        headers = self._headers(tables.get("http_server_config"))
        users = self._users(tables.get("basic_auth_users"))
        files = [self.path]
        if tls is not None:
            files += [each for each in (tls.cert_file, tls.key_file, tls.client_ca_file) if each]
            if not self.errors:
                self._files(tls)
        digest = hashlib.sha256()
        for each in files:
            try:
                digest.update(hashlib.sha256(read_regular(each, 4 << 20)).digest())
            except (OSError, ValueError):
                digest.update(b"absent")
        return WebConfig(self.path, tls, users, headers, tuple(files), digest.hexdigest())

    def _add(self, line: int, key: str, why: str) -> None:
        self.errors.append(Problem(self.path, line, key, why))

    def _root(self, data: bytes) -> yaml.Node | None:
        try:
            root = yaml.compose(data.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._add(line, "", "the file is not UTF-8 text; save it as UTF-8")
        except RecursionError:
            self._add(0, "", "YAML syntax: nested too deeply")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            why = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
            self._add(mark.line + 1 if mark is not None else 0, "", f"YAML syntax: {why}")
        else:
            return root if root is not None else yaml.MappingNode("tag:yaml.org,2002:map", [])
        return None

    def _table(self, node: yaml.Node, key: str, known: tuple[str, ...] | None) -> dict[str, tuple[int, yaml.Node]]:
        """(line of the key, value) by key. known: None = any key."""
        if _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            what = "must be a table of keys and values, indented below the key" if key else "the file must be a table"
            self._add(_line(node), key, f"{what}, not {_KINDS.get(type(node).__name__, 'a value')}")
            return {}
        found: dict[str, tuple[int, yaml.Node]] = {}
        for name, value in node.value:
            text = name.value if isinstance(name, yaml.ScalarNode) else ""
            where = f"{key}.{text}".removeprefix(".")
            if not text:
                self._add(_line(name), key, "a key must be text")
            elif text in found:
                self._add(_line(name), where, f"the key stands in line {found[text][0]} already; remove one of the two")
            elif known is not None and text not in known:
                self._add(_line(name), where, self._unknown(text, known))
            else:
                found[text] = _line(name), value
        return found

    def _unknown(self, text: str, known: tuple[str, ...]) -> str:
        if known is TLS_KEYS and text in INLINE:
            return f"certificates and keys must be in files; write {INLINE[text]}"
        if known is TABLES and text == "rate_limit":
            return "there is no such key; samplicator has limits of its own; remove it"
        hint = self.suggest(text, known) or f"; write one of: {', '.join(known)}"
        return f"there is no such key{hint}"

    # ------------------------------------------------------------------ TLS

    def _tls(self, entry: tuple[int, yaml.Node] | None) -> Tls | None:
        if entry is None:
            return None
        table, key = "tls_server_config", entry[0]
        keys = self._table(entry[1], table, TLS_KEYS)
        if not keys:
            if _is_null(entry[1]):
                why = "the table is empty, so there is no TLS; write cert_file and key_file, or remove it"
                self.warnings.append(Problem(self.path, key, table, why))
            return None
        self.lines = {name: line for name, (line, _) in keys.items()}
        self.lines[""] = key
        paths = {name: self._path(keys, name) for name in ("cert_file", "key_file", "client_ca_file")}
        for name in ("cert_file", "key_file"):
            if name not in keys:
                self._add(key, f"{table}.{name}", f"this key is required; add {name}: FILE")
        client = self._client(keys, paths["client_ca_file"])
        low = self._one_of(keys, "min_version", VERSIONS, "TLS12")
        high = self._one_of(keys, "max_version", VERSIONS, "TLS13")
        if VERSIONS.index(low) > VERSIONS.index(high):
            self._add(
                self.lines.get("max_version", key),
                f"{table}.max_version",
                f"{high} is lower than min_version {low}; write {low} or higher",
            )
        return Tls(
            cert_file=paths["cert_file"],
            key_file=paths["key_file"],
            client_ca_file=paths["client_ca_file"],
            client_cert=client,
            min_version=low,
            max_version=high,
            ciphers=self._ciphers(keys),
            prefer_server_ciphers=self._truth(keys, "prefer_server_cipher_suites", True, table),
            curve=self._curve(keys),
            names=tuple(self._texts(keys, "client_allowed_sans")),
        )

    def _files(self, tls: Tls) -> None:
        from samplicator.config.web import certificates  # ssl: only where it is needed

        for find, problems in ((certificates.faults, self.errors), (certificates.doubts, self.warnings)):
            if not self.errors:
                for name, why in find(tls):
                    line = self.lines.get(name, self.lines[""])
                    problems.append(Problem(self.path, line, f"tls_server_config.{name}", why))

    def _client(self, keys: Mapping[str, tuple[int, yaml.Node]], authority: str) -> ClientCert:
        table = "tls_server_config"
        line = self.lines.get("client_auth_type", 0)
        text = self._text(keys, "client_auth_type", table) or "NoClientCert"
        if text in UNVERIFIED:
            better = "write VerifyClientCertIfGiven or RequireAndVerifyClientCert"
            why = f"{text} takes any certificate without a check; {better}"
            self._add(line, f"{table}.client_auth_type", why)
            return "none"
        client = CLIENT_AUTH.get(text)
        if client is None:
            self._add(line, f"{table}.client_auth_type", self._not_one(text, tuple(CLIENT_AUTH)))
            return "none"
        if client == "none" and authority:
            why = "no client is asked for a certificate; add client_auth_type: RequireAndVerifyClientCert"
            self._add(self.lines["client_ca_file"], f"{table}.client_ca_file", why)
        if client != "none" and not authority:
            why = "the authority that signs the clients' certificates is missing; add client_ca_file: FILE"
            self._add(line, f"{table}.client_auth_type", why)
        if "client_allowed_sans" in keys and client == "none":
            why = "no client is asked for a certificate; add client_auth_type: RequireAndVerifyClientCert"
            self._add(self.lines["client_allowed_sans"], f"{table}.client_allowed_sans", why)
        return client

    def _ciphers(self, keys: Mapping[str, tuple[int, yaml.Node]]) -> tuple[str, ...]:
        found: list[str] = []
        for text in self._texts(keys, "cipher_suites"):
            if text in CIPHERS:
                found.append(CIPHERS[text])
            elif text not in TLS13_CIPHERS:
                known = (*CIPHERS, *TLS13_CIPHERS)
                hint = self.suggest(text, known) or f"; write names such as {known[8]}"
                self._add(
                    self.lines["cipher_suites"], "tls_server_config.cipher_suites", f"{text!r} is not known{hint}"
                )
        return tuple(found)

    def _curve(self, keys: Mapping[str, tuple[int, yaml.Node]]) -> str:
        texts = self._texts(keys, "curve_preferences")
        where = self.lines.get("curve_preferences", 0), "tls_server_config.curve_preferences"
        for text in texts:
            if text not in CURVES:
                self._add(*where, self._not_one(text, tuple(CURVES)))
        if len(texts) > 1:
            why = "several curves cannot be set here, so OpenSSL's own order is used; name one, or remove the key"
            self.warnings.append(Problem(self.path, *where, why))
        return CURVES.get(texts[0], "") if len(texts) == 1 else ""

    # ------------------------------------------------------------------ headers and users

    def _headers(self, entry: tuple[int, yaml.Node] | None) -> tuple[tuple[str, str], ...]:
        if entry is None:
            return ()
        table = "http_server_config"
        keys = self._table(entry[1], table, ("http2", "headers"))
        self._truth(keys, "http2", True, table)
        if "headers" not in keys:
            return ()
        found: list[tuple[str, str]] = []
        table += ".headers"
        names = {name.lower(): name for name in HEADERS}
        for text, (line, node) in self._table(keys["headers"][1], table, None).items():
            name = names.get(text.lower())
            value = node.value.strip() if isinstance(node, yaml.ScalarNode) and not _is_null(node) else None
            if name is None:
                hint = self.suggest(text, HEADERS) or f"; write one of: {', '.join(HEADERS)}"
                self._add(line, f"{table}.{text}", f"this header cannot be set{hint}")
            elif value is None or not value.isprintable() or not value.isascii():
                self._add(line, f"{table}.{text}", "must be one line of text in ASCII")
            else:
                self._value(line, f"{table}.{text}", name, value)
                found.append((name, value))
        return tuple(found)

    def _value(self, line: int, key: str, name: str, value: str) -> None:
        """The values that exporter-toolkit accepts."""
        allowed = {"X-Frame-Options": ("deny", "sameorigin"), "X-Content-Type-Options": ("nosniff",)}.get(name)
        if allowed and value and value.lower() not in allowed:
            self._add(line, key, f"must be {' or '.join(allowed)}, not {value!r}")

    def _users(self, entry: tuple[int, yaml.Node] | None) -> tuple[tuple[str, str], ...]:
        if entry is None:
            return ()
        found: list[tuple[str, str]] = []
        how = "write a bcrypt hash, as `htpasswd -nBC 10 NAME` prints it behind the colon"
        table = "basic_auth_users"
        users = self._table(entry[1], table, None)
        if not users and _is_null(entry[1]):
            why = "the table is empty, so nobody has to log in; add a user, or remove it"
            self.warnings.append(Problem(self.path, entry[0], table, why))
        for user, (line, node) in users.items():
            text = node.value if isinstance(node, yaml.ScalarNode) else ""
            if ":" in user or not user.isprintable():
                self._add(line, f"{table}.{user!r}", "a user name must be printable and cannot contain a colon")
            elif not BCRYPT.fullmatch(text):
                self._add(line, f"{table}.{user}", f"this is not the bcrypt hash of a password; {how}")
            elif int(text[4:6]) > MAX_COST:
                why = f"cost {int(text[4:6])} would take a minute per login; the highest is {MAX_COST}; {how}"
                self._add(line, f"{table}.{user}", why)
            else:
                found.append((user, text))
        if len(found) > MAX_USERS:
            self._add(entry[0], table, f"there are {len(found)} users; the limit is {MAX_USERS}")
        return tuple(found)

    # ------------------------------------------------------------------ values

    def _path(self, keys: Mapping[str, tuple[int, yaml.Node]], name: str) -> str:
        """Relative paths begin in the directory of the file, as in exporter-toolkit."""
        text = self._text(keys, name, "tls_server_config")
        if text and not text.isprintable():
            self._add(keys[name][0], f"tls_server_config.{name}", "the path must have printable characters only")
            return ""
        return os.path.join(os.path.dirname(self.path), text) if text else ""

    def _text(self, keys: Mapping[str, tuple[int, yaml.Node]], name: str, table: str) -> str:
        if name not in keys:
            return ""
        line, node = keys[name]
        if isinstance(node, yaml.ScalarNode) and not _is_null(node) and node.value:
            return str(node.value)
        self._add(line, f"{table}.{name}", "must be text; write a value behind the colon, or remove the key")
        return ""

    def _texts(self, keys: Mapping[str, tuple[int, yaml.Node]], name: str) -> list[str]:
        if name not in keys:
            return []
        line, node = keys[name]
        if isinstance(node, yaml.SequenceNode) and node.value:
            items = [item.value for item in node.value if isinstance(item, yaml.ScalarNode) and item.value]
            if len(items) == len(node.value):
                return [str(item) for item in items]
        self._add(line, f"tls_server_config.{name}", "must be a list of texts, such as [ONE, TWO]; or remove the key")
        return []

    def _one_of(
        self, keys: Mapping[str, tuple[int, yaml.Node]], name: str, known: tuple[str, ...], default: str
    ) -> str:
        text = self._text(keys, name, "tls_server_config") or default
        if text not in known:
            self._add(keys[name][0], f"tls_server_config.{name}", self._not_one(text, known))
            return default
        return text

    def _not_one(self, text: str, known: tuple[str, ...]) -> str:
        return f"{text!r} must be one of {', '.join(known)}{self.suggest(text, known)}"

    def _truth(self, keys: Mapping[str, tuple[int, yaml.Node]], name: str, default: bool, table: str) -> bool:
        if name not in keys:
            return default
        line, node = keys[name]
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
            return str(node.value).lower() in ("true", "yes", "on")
        self._add(line, f"{table}.{name}", "must be true or false")
        return default


def _line(node: Any) -> int:
    mark = node.start_mark
    return mark.line + 1 if mark is not None else 0


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
