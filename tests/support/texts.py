"""Texts and configurations for the property tests of the readers: nearly right ones, and good ones."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from samplicator.config.model.whole import Config

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- texts that are nearly right -------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *[
            "1.2.3.4",
            "10.0.0.0",
            "0.0.0.0",
            "::1",
            "2001:db8::",
            "fe80::1%lo",
            "host.example",
            "syslog",
            "9995",
            "0",
            "70000",
            "24",
            "128",
        ],
        *["255.0.255.0", "64", "010", "/", ":", "[", "]", ",", "-", "+", "#", "%", "é"],
        *(": ", " ", "\t", "\r", "\n", "\0"),
    ]
)
RULE_TEXT = st.lists(PIECES, max_size=30).map("".join)
OPTION = st.sampled_from(
    [
        "-S",
        "-n",
        "-d",
        "-x",
        "-b",
        "-u",
        "-p",
        "-s",
        "-t",
        "-m",
        "-4",
        "-6",
        "-f",
        "-c",
        "--",
        "--http",
        "--workers",
        "--control=/x",
        "--check",
        "-h",
        "-q",
        "-",
        "--x=",
        "-dS",
        "-p9",
    ]
)
TOML_KEYS = st.sampled_from(
    [
        "name",
        "to",
        "from",
        "listen",
        "listener",
        "receiver",
        "rule",
        "service",
        "datapath",
        "stop",
        "checksum",
        "workers",
        "freq",
        "ttl",
        "spoof",
        "probe",
        "standby_for",
        "members",
        "weight",
        "balance",
        "source",
        "http",
        "control",
        "cpus",
        "multicast",
        "interface",
        "family",
        "engine",
        "x",
    ]
)
TOML_WORDS = st.sampled_from(
    [
        "a",
        "b",
        "192.0.2.1:9",
        "[::1]:9",
        "0.0.0.0:2055",
        "0.0.0.0:9-12",
        "10.0.0.0/8",
        "::/0",
        "auto",
        "keep",
        "64MiB",
        "tcp://:80",
        "http://h:1/x",
        "round-robin",
        "",
    ]
)
TOML_VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 70000), TOML_WORDS, st.text(max_size=8), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TOML_KEYS, inner, max_size=3)),
    max_leaves=8,
)


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08X}" if not c.isalnum() else c for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",\n ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


@st.composite
def toml_texts(draw: Any) -> str:
    """Tables and keys of the configuration with values that may be anything."""
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        table = draw(
            st.sampled_from(
                ["[service]", "[datapath]", "[[listener]]", "[[receiver]]", "[[pool]]", "[[rule]]", "[rule.x]"]
            )
        )
        lines.append(table)
        for key, value in draw(st.dictionaries(TOML_KEYS, TOML_VALUES, max_size=4)).items():
            lines.append(f"{key} = {toml_value(value)}  # {draw(st.sampled_from(['', 'x = [']))}")
    return "\n".join(lines)


# --- good configurations ---------------------------------------------------------------------------


def entries(model: dict[str, Any], **optional: Any) -> Any:
    return st.fixed_dictionaries(model, optional=optional)


NAMES = st.sampled_from(["a", "b", "nfdump", 'q"\\', "192.0.2.1/9#2", "é x"])
LISTENERS = st.lists(
    entries(
        {"name": NAMES},
        interface=st.sampled_from(["", "eth1"]),
        multicast=st.just(["239.1.1.1"]),
        family=st.sampled_from(["any", "ipv4"]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda listener: listener["name"],
)
RECEIVERS = st.lists(
    st.one_of(
        entries(
            {"name": NAMES, "to": st.sampled_from(["192.0.2.1:9995", "h.example:1"])},
            checksum=st.booleans(),
            ttl=st.sampled_from([1, 64, 255, "keep"]),
            tos=st.sampled_from([0, 255, "keep"]),
            spoof=st.booleans(),
            engine=st.sampled_from(["auto", "raw"]),
            mtu=st.sampled_from(["auto", 68, 1400, 65535]),
            freq=st.sampled_from([1, 2, 2**32 - 1]),
        ),
        entries(
            {"name": NAMES, "to": st.just("[2001:db8::1%eth0]:9")},
            source=st.sampled_from(["", "2001:db8::9", "[::1]:8"]),
            engine=st.sampled_from(["udp"]),
            pause_us=st.sampled_from([0, 9]),
            probe=st.sampled_from(["auto", "off", "tcp://:1", "http://[::1]:80/a%20b", "ipfix"]),
        ),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda receiver: receiver["name"],
)
FROM = st.lists(
    st.sampled_from(["10.0.0.0/8", "::/0", "0.0.0.0/0", "10.0.5.0/255.0.255.0", "h.example", "2001:db8::1"]), min_size=1
)


@st.composite
def pools(draw: Any, receivers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to two pools of the receivers; those that are left may stand by for others."""
    names = [receiver["name"] for receiver in receivers]
    found = []
    for name in draw(st.lists(st.sampled_from(["pool one", 'p\u00f6"l']), unique=True)):
        members = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        share = st.integers(1, 1000)
        weight = st.one_of(
            st.lists(share, min_size=len(members), max_size=len(members)),
            st.dictionaries(st.sampled_from(members), share),
        )
        kinds = st.sampled_from(["exporter-hash", "round-robin"])
        found.append({"name": name, "members": members, "weight": draw(weight), "balance": draw(kinds)})
    pooled = {name for pool in found for name in pool["members"]}
    free = [receiver for receiver in receivers if receiver["name"] not in pooled]
    if len(free) > 1 and free[0].get("probe") != "off" and draw(st.booleans()):
        free[1]["standby_for"] = free[0]["name"]
    return found


@st.composite
def configs(draw: Any) -> Config:
    listeners, receivers = draw(LISTENERS), draw(RECEIVERS)
    for index, listener in enumerate(listeners):
        listener["listen"] = [f"0.0.0.0:{2055 + index}", f"[::]:{100 * index + 5000}-{100 * index + 5009}"]
    groups = draw(pools(receivers))
    names = st.lists(st.sampled_from([item["name"] for item in (*receivers, *groups)]), unique=True)
    heard = st.lists(st.sampled_from([listener["name"] for listener in listeners]), unique=True)
    rules = st.lists(entries({"to": names}, **{"from": FROM, "listener": heard, "stop": st.booleans()}), max_size=4)
    service = entries({}, http=st.sampled_from(["", "0.0.0.0:9", "[::1]:9"]), control=st.just("/a b/\\c"),
                      log_format=st.just("json"), resolve_interval=st.sampled_from([0.5, 1e3, 7]))  # fmt: skip
    datapath = entries({}, workers=st.sampled_from([1, 2, "auto"]), cpus=st.just([3, 1]), batch=st.just(512),
                       receive_buffer=st.sampled_from([1, 4096, "3MB", "7 KiB", "1GiB"]))  # fmt: skip
    return Config.model_validate(
        {"listener": listeners, "receiver": receivers, "pool": groups, "rule": draw(rules), "service": draw(service),
         "datapath": draw(datapath)}
    )  # fmt: skip


CONFIGS = configs()
