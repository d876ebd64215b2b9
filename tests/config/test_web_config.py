"""The web-config file: what it may say, and word for word what an operator reads when it is wrong. promtool judges the
same files, where this host has it.
"""

from __future__ import annotations

import datetime
import os
import pickle
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from samplicator.config.diff import diff_loaded
from samplicator.config.files import read_tokens
from samplicator.config.toml.load import load_toml
from samplicator.config.web import certificates
from samplicator.config.web.load import CIPHERS, load_web
from samplicator.config.web.model import Tls, WebConfig
from samplicator.errors import ConfigError
from support.pki import make_pair

HASH = "$2b$04$" + "." * 21 + "u" + "a" * 31
PAIR = "cert_file: c.pem\n  key_file: k.pem"
GOOD = f"tls_server_config:\n  {PAIR}\nbasic_auth_users:\n  prom: {HASH}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate and its key, and another pair."""
    found = tmp_path_factory.mktemp("web")
    make_pair(found)
    make_pair(found, "other-")
    (found / "note.txt").write_text("no certificate\n")
    (found / "web.yml").write_text(GOOD)
    subprocess.run(
        ["openssl", "pkey", "-in", found / "k.pem", "-aes128", "-passout", "pass:x", "-out", found / "locked.pem"],
        check=True,
        capture_output=True,
    )
    return found


def read(place: Path, text: str | bytes) -> tuple[WebConfig | None, list[str], list[str]]:
    path = place / "w.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    web, errors, warnings = load_web(str(path))
    short = str(place) + "/"
    return web, [str(each).replace(short, "") for each in errors], [str(each).replace(short, "") for each in warnings]


def test_a_good_file(place: Path) -> None:
    web, errors, warnings = read(
        place,
        f"""\
tls_server_config:
  {PAIR}
  client_ca_file: other-c.pem
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [scraper.example.net]
  min_version: TLS13
  prefer_server_cipher_suites: false
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]
  curve_preferences: [CurveP256]
http_server_config:
  http2: false
  headers:
    X-Frame-Options: DENY
    Strict-Transport-Security: ""
basic_auth_users:
  prom: {HASH}
  me: "{HASH}"
""",
    )
    assert (errors, warnings) == ([], [])
    assert web is not None
    assert web.tls == Tls(
        str(place / "c.pem"),
        str(place / "k.pem"),
        str(place / "other-c.pem"),
        "required",
        "TLS13",
        "TLS13",
        ("ECDHE-ECDSA-AES128-GCM-SHA256",),
        False,
        "prime256v1",
        ("scraper.example.net",),
    )
    assert web.headers == (("X-Frame-Options", "DENY"), ("Strict-Transport-Security", ""))
    assert web.users == (("prom", HASH), ("me", HASH))
    assert web.files == tuple(str(place / name) for name in ("w.yml", "c.pem", "k.pem", "other-c.pem"))
    assert pickle.loads(pickle.dumps(web)) == web


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "http_server_config:\n", "http_server_config: {http2: true}\n"]
)
def test_a_file_that_says_nothing(place: Path, text: str) -> None:
    web, errors, warnings = read(place, text)
    assert (errors, warnings) == ([], [])
    assert web is not None
    assert (web.tls, web.users, web.headers) == (None, (), ())


BAD: list[tuple[str | bytes, list[str]]] = [
    ("a: [", ["w.yml:1: YAML syntax: expected the node content, but found '<stream end>'"]),
    ("a: b\n---\nc: d\n", ["w.yml:2: YAML syntax: but found another document"]),
    ("a: &x b\nc: *y\n", ["w.yml:2: YAML syntax: found undefined alias 'y'"]),
    (b"a: \xff\n", ["w.yml:1: the file is not UTF-8 text; save it as UTF-8"]),
    ("[" * 100_000, ["w.yml: YAML syntax: nested too deeply"]),
    ("- a\n", ["w.yml:1: the file must be a table, not a list"]),
    (
        "tls_server: {}\nrate_limit: {}\nzzz: 1\n",
        [
            "w.yml:1: tls_server: there is no such key; did you mean 'tls_server_config'?",
            "w.yml:2: rate_limit: there is no such key; samplicator has limits of its own; remove it",
            "w.yml:3: zzz: there is no such key; write one of: tls_server_config, http_server_config, basic_auth_users",
        ],
    ),
    (
        "tls_server_config:\n  min_version: SSL3\n  cert: x\n",
        [
            "w.yml:1: tls_server_config.cert_file: this key is required; add cert_file: FILE",
            "w.yml:1: tls_server_config.key_file: this key is required; add key_file: FILE",
            "w.yml:2: tls_server_config.min_version: 'SSL3' must be one of TLS10, TLS11, TLS12, TLS13",
            "w.yml:3: tls_server_config.cert: certificates and keys must be in files; write cert_file",
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  cert_file: d.pem\n  min_version: TLS13\n  max_version: TLS12\n"
        "  key_fiel: k\n",
        [
            "w.yml:4: tls_server_config.cert_file: the key stands in line 2 already; remove one of the two",
            "w.yml:6: tls_server_config.max_version: TLS12 is lower than min_version TLS13; write TLS13 or higher",
            "w.yml:7: tls_server_config.key_fiel: there is no such key; did you mean 'key_file'?",
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  client_auth_type: RequireAnyClientCert\n",
        [
            "w.yml:4: tls_server_config.client_auth_type: RequireAnyClientCert takes any certificate without a check; "
            "write VerifyClientCertIfGiven or RequireAndVerifyClientCert"
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  client_auth_type: Verify\n  client_allowed_sans: [a]\n",
        [
            "w.yml:4: tls_server_config.client_auth_type: 'Verify' must be one of NoClientCert, "
            "VerifyClientCertIfGiven, RequireAndVerifyClientCert"
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  client_ca_file: c.pem\n  client_allowed_sans: [a]\n",
        [
            "w.yml:4: tls_server_config.client_ca_file: no client is asked for a certificate; "
            "add client_auth_type: RequireAndVerifyClientCert",
            "w.yml:5: tls_server_config.client_allowed_sans: no client is asked for a certificate; "
            "add client_auth_type: RequireAndVerifyClientCert",
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  client_auth_type: VerifyClientCertIfGiven\n",
        [
            "w.yml:4: tls_server_config.client_auth_type: the authority that signs the clients' certificates is "
            "missing; add client_ca_file: FILE"
        ],
    ),
    (
        f"tls_server_config:\n  {PAIR}\n  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA25, x]\n"
        "  curve_preferences: [P256]\n  prefer_server_cipher_suites: maybe\n  client_allowed_sans: x\n",
        [
            "w.yml:4: tls_server_config.cipher_suites: 'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA25' is not known; "
            "did you mean 'TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256'?",
            "w.yml:4: tls_server_config.cipher_suites: 'x' is not known; write names such as "
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            "w.yml:5: tls_server_config.curve_preferences: 'P256' must be one of CurveP256, CurveP384, CurveP521, "
            "X25519; did you mean 'CurveP256'?",
            "w.yml:6: tls_server_config.prefer_server_cipher_suites: must be true or false",
            "w.yml:7: tls_server_config.client_allowed_sans: no client is asked for a certificate; "
            "add client_auth_type: RequireAndVerifyClientCert",
            "w.yml:7: tls_server_config.client_allowed_sans: must be a list of texts, such as [ONE, TWO]; or remove "
            "the key",
        ],
    ),
    (
        "tls_server_config:\n  cert_file: c.pem\n  key_file: other-k.pem\n",
        ["w.yml:3: tls_server_config.key_file: other-k.pem is not the key of c.pem; name the two files of one pair"],
    ),
    (
        "tls_server_config:\n  cert_file: note.txt\n  key_file: gone.pem\n",
        [
            "w.yml:2: tls_server_config.cert_file: note.txt has no PEM block of a certificate "
            "(-----BEGIN CERTIFICATE-----); name such a file",
            "w.yml:3: tls_server_config.key_file: gone.pem cannot be read: No such file or directory",
        ],
    ),
    (
        "tls_server_config:\n  cert_file: c.pem\n  key_file: locked.pem\n",
        [
            "w.yml:3: tls_server_config.key_file: locked.pem: the key has a passphrase; write it without one "
            "(`openssl pkey -in OLD -out NEW`)"
        ],
    ),
    (
        f"basic_auth_users:\n  prom: secret\n  'a:b': {HASH}\n  slow: {HASH.replace('$04', '$20')}\n  none:\n",
        [
            "w.yml:2: basic_auth_users.prom: this is not the bcrypt hash of a password; write a bcrypt hash, as "
            "`htpasswd -nBC 10 NAME` prints it behind the colon",
            "w.yml:3: basic_auth_users.'a:b': a user name must be printable and cannot contain a colon",
            "w.yml:4: basic_auth_users.slow: cost 20 would take a minute per login; the highest is 15; write a bcrypt "
            "hash, as `htpasswd -nBC 10 NAME` prints it behind the colon",
            "w.yml:5: basic_auth_users.none: this is not the bcrypt hash of a password; write a bcrypt hash, as "
            "`htpasswd -nBC 10 NAME` prints it behind the colon",
        ],
    ),
    (
        "http_server_config:\n  http2: 1\n  headers:\n    X-Frame-Options: some\n    Server: x\n"
        '    Content-Security-Policy: "a\\nb"\n',
        [
            "w.yml:2: http_server_config.http2: must be true or false",
            "w.yml:4: http_server_config.headers.X-Frame-Options: must be deny or sameorigin, not 'some'",
            "w.yml:5: http_server_config.headers.Server: this header cannot be set; write one of: "
            "Content-Security-Policy, Strict-Transport-Security, X-Content-Type-Options, X-Frame-Options, "
            "X-XSS-Protection",
            "w.yml:6: http_server_config.headers.Content-Security-Policy: must be one line of text in ASCII",
        ],
    ),
]


@pytest.mark.parametrize(("text", "texts"), BAD)
def test_every_error_is_told_at_once(place: Path, text: str | bytes, texts: list[str]) -> None:
    web, errors, _ = read(place, text)
    assert (web, errors) == (None, texts)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "- a\n",
        "tls_server: {}\n",
        "tls_server_config:\n",
        "basic_auth_users:\n",
        f"tls_server_config:\n  {PAIR}\n  client_ca_file: c.pem\n",
        "basic_auth_users:\n  prom: secret\n",
        "http_server_config:\n  headers:\n    Server: x\n",
    ],
)
def test_promtool_agrees(place: Path, text: str) -> None:
    _, errors, _ = read(place, text)
    done = subprocess.run(["promtool", "check", "web-config", place / "w.yml"], capture_output=True, text=True)
    assert (done.returncode == 0) == (errors == []), done.stdout + done.stderr


def test_an_empty_table_protects_nothing(place: Path) -> None:
    web, errors, warnings = read(place, "tls_server_config:\nbasic_auth_users:\n")
    assert (web is not None, errors) == (True, [])
    assert warnings == [
        "w.yml:1: tls_server_config: the table is empty, so there is no TLS; write cert_file and key_file, or "
        "remove it",
        "w.yml:2: basic_auth_users: the table is empty, so nobody has to log in; add a user, or remove it",
    ]


def test_certificates_that_end_are_told(place: Path) -> None:
    web, _, warnings = read(place, GOOD)
    assert web is not None
    assert web.tls is not None
    assert warnings == []
    ends = certificates._not_after(web.tls.cert_file)
    assert ends is not None
    said = ssl.cert_time_to_seconds(ssl._ssl._test_decode_cert(web.tls.cert_file)["notAfter"])  # type: ignore[attr-defined]
    assert ends.timestamp() == said
    for before, words in (
        (datetime.timedelta(days=8), ""),
        (datetime.timedelta(days=6), "expires at"),
        (-ends.resolution, "expired at"),
    ):
        found = list(certificates.doubts(web.tls, ends - before))
        assert words in " ".join(why for _, why in found), found
        assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("DNS:Relay.example.net,IP:127.0.0.1,DNS:*.pods.example", {"relay.example.net", "*.pods.example"}),
        ("IP:::1", set()),
        ("email:a@example.net,DNS:b", {"b"}),
        (",".join(f"DNS:name-{n}.example.net" for n in range(40)), {f"name-{n}.example.net" for n in range(40)}),
    ],
)
def test_names_in_a_certificate(tmp_path: Path, more: str, names: set[str]) -> None:
    make_pair(tmp_path, more=more)
    assert certificates.host_names(str(tmp_path / "c.pem")) == names
    assert certificates.host_names(str(tmp_path / "k.pem")) == frozenset()


def test_each_cipher_is_one_of_openssl(place: Path) -> None:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers(":".join(CIPHERS.values()) + ":@SECLEVEL=0")
    assert {each["name"] for each in made.get_ciphers()} >= set(CIPHERS.values())


# ---------------------------------------------------------------------------------------------------- in the TOML file

TOML = """\
[service]
http = "{http}"
{more}
[[listener]]
name = "l"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "r"
to = "192.0.2.10:9995"
[[rule]]
to = ["r"]
"""


def write(place: Path, more: str, http: str = "127.0.0.1:9420") -> str:
    path = place / "a.toml"
    path.write_text(TOML.format(http=http, more=more))
    return str(path)


def test_errors_stand_among_the_others(place: Path) -> None:
    (place / "bad.yml").write_text("basic_auth_users:\n  prom: x\ntls: {}\n")
    more = f'web_config = "{place / "bad.yml"}"\nhttp_hosts = ["a b", "*"]\nlog_level = "loud"'
    with pytest.raises(ConfigError) as caught:
        load_toml(write(place, more))
    short = str(place) + "/"
    assert [str(each).replace(short, "") for each in caught.value.problems] == [
        "a.toml:4: service.http_hosts[0]: 'a b' is not a host name; write a name without port, such as "
        'relay.example.net, or "*" for every name',
        "a.toml:5: service.log_level: must be 'debug', 'info', 'warning' or 'error'",
        "bad.yml:2: basic_auth_users.prom: this is not the bcrypt hash of a password; write a bcrypt hash, as "
        "`htpasswd -nBC 10 NAME` prints it behind the colon",
        "bad.yml:3: tls: there is no such key; write one of: tls_server_config, http_server_config, basic_auth_users",
    ]


@pytest.mark.parametrize(("name", "why"), [("gone.yml", "No such file"), ("", "is a directory")])
def test_a_file_that_cannot_be_read(place: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"a.toml:3: service.web_config: .* cannot be read: .*{why}"):
        load_toml(write(place, f'web_config = "{place / name}/"' if not name else f'web_config = "{place / name}"'))


def test_what_is_reachable_from_outside_and_readable_is_told(place: Path) -> None:
    (place / "users.yml").write_text(f"basic_auth_users:\n  prom: {HASH}\n")
    (place / "token").write_text("a\n\n b \n")
    users, tls, token = (
        f'web_config = "{place / "users.yml"}"',
        f'web_config = "{place / "web.yml"}"',
        f'reload_token_file = "{place / "token"}"',
    )

    def keys(more: str, http: str) -> list[str]:
        return [each.key for each in load_toml(write(place, more, http)).warnings]

    for http in ("127.0.0.1:9420", "[::1]:9420", "localhost:9420"):
        assert keys(f"{users}\n{token}", http) == []
    for http in ("0.0.0.0:9420", "[::]:9420", "relay:9420", "192.0.2.1:9420"):
        assert keys(f"{users}\n{token}", http) == ["service.web_config", "service.reload_token_file"]
        assert keys(f"{tls}\n{token}", http) == []
        assert keys(token, http) == ["service.reload_token_file"]
    assert keys(f"{tls}\n{token}", "") == ["service.web_config", "service.reload_token_file"]
    assert read_tokens(str(place / "token")) == ("a", "b")
    assert read_tokens("") == ()


def test_a_token_file_that_has_no_token_is_told(place: Path) -> None:
    (place / "empty").write_text(" \n\n")
    (place / "binary").write_bytes(b"\xff\n")
    for name, why in (
        ("empty", "has no token"),
        ("gone", "cannot be read: No such file"),
        ("binary", "cannot be read"),
    ):
        warnings = load_toml(write(place, f'reload_token_file = "{place / name}"')).warnings
        assert [each.key for each in warnings] == ["service.reload_token_file"]
        assert why in warnings[0].why
        assert warnings[0].why.endswith("until then changes over TCP stay off")


def test_a_change_of_any_of_its_files_is_a_change(place: Path, tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem", "web.yml"):
        shutil.copy(place / name, tmp_path / name)
    (tmp_path / "token").write_text("a")
    path = write(tmp_path, f'web_config = "{tmp_path / "web.yml"}"\nreload_token_file = "{tmp_path / "token"}"')
    before = load_toml(path)
    assert before.files == (path,)
    assert before.watched == tuple(str(tmp_path / name) for name in ("web.yml", "c.pem", "k.pem", "token"))
    assert diff_loaded(before, load_toml(path)).text() == "nothing changed"
    make_pair(tmp_path)
    after = load_toml(path)
    assert diff_loaded(before, after).text() == (
        f"service.web_config: {tmp_path / 'web.yml'}, or a file that it names, has changed"
    )
    os.unlink(tmp_path / "k.pem")
    with pytest.raises(ConfigError, match=r"web.yml:3: tls_server_config.key_file"):
        load_toml(path)
