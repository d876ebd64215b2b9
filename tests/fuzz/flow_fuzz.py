"""Builds the flow stage's fuzz target with clang, libFuzzer, ASan and UBSan, and runs it: `python
tests/fuzz/flow_fuzz.py --runs 10000000` (part of `make fuzz`).

The corpus, tests/fuzz/corpus/flow, has named files, made by `--make-corpus` from the model's encoders and the captures,
and files named by a hash: inputs that runs found. `--keep` brings these up to date: the fewest and smallest that reach
every edge that anything found so far reaches. A finding leaves its input in build/fuzz and ends with libFuzzer's exit
status. Called by tests/fuzz/test_flow_target.py, which runs it for seconds.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "flow"
BUILD = ROOT / "build" / "fuzz"
TARGET = BUILD / "flow_target"
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
FOUND = re.compile("[0-9a-f]{40}")
LEAVE_OUT, REPLAY, REFRESH, LATER, AGE = 0x08, 0x10, 0x20, 0x40, 0x80


def clang() -> str | None:
    """The compiler, the newest first; None where there is none with libFuzzer's name."""
    return next(
        (found for name in ("clang", *[f"clang-{n}" for n in range(22, 11, -1)]) if (found := shutil.which(name))), None
    )


def build() -> Path:
    """Compiles the target if a source is newer; returns the program."""
    sources = [ROOT / "tests/fuzz/flow_target.pyx", *(ROOT / "fastpath").rglob("*.pxd")]
    if TARGET.exists() and TARGET.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return TARGET
    compiler = clang()
    if compiler is None:
        raise SystemExit("clang and libclang-rt are needed for libFuzzer; `make test-needs` installs them")
    BUILD.mkdir(parents=True, exist_ok=True)
    c_file = BUILD / "flow_target.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "-I", str(ROOT / "fastpath"), "-o", str(c_file), str(sources[0])],
        check=True,
    )
    include = [f"-I{ROOT / 'fastpath'}", f"-I{sysconfig.get_path('include')}"]
    # Python is never started: what the module's unused half asks of it may stay unresolved
    link = ["-no-pie", "-fno-pic", "-Wl,--unresolved-symbols=ignore-all", "-lm"]
    quiet = ["-DFLOW_COUNT_STEPS", "-w", "-g", "-O1", "-fwrapv", "-fno-omit-frame-pointer"]
    subprocess.run([compiler, *quiet, *SANITIZERS, *include, str(c_file), *link, "-o", str(TARGET)], check=True)
    return TARGET


def record(op: int, payload: bytes) -> bytes:
    payload += bytes(-len(payload) % 4)
    return bytes([op, len(payload) // 4]) + payload if len(payload) <= 1020 else b""


def make_corpus() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from support import flows as model

    fields = [(8, 4), (12, 4), (82, 65535)]
    seeds: dict[str, list[bytes]] = {
        "fixed": [],
        "sflow": [],
        "netflow9": [],
        "ipfix": [],
        "withdraw": [],
        "domains": [],
        "order": [],
        "rows": [],
        "unmatched": [],
    }
    for i, (version, size) in enumerate([(1, 52), (5, 48), (7, 52), (8, 28)]):
        tail = bytes(8) if version in (5, 8) else bytes(4)
        seeds["fixed"] += [
            record(i | LEAVE_OUT, model.fixed(version, 9, 2, size, tail)),
            record(i, model.fixed(version, 99, 1, size, tail)),
        ]
    seeds["sflow"] = [record(1, model.sflow(1, bytes(4))), record(1, model.sflow(5, bytes(16)))]
    for kind, name, encode in ((9, "netflow9", model.v9), (10, "ipfix", model.ipfix)):
        template = model.a_set(0 if kind == 9 else 2, model.template(256, fields[: kind - 7]))
        options = model.a_set(1 if kind == 9 else 3, model.options_template(kind, 257, [(1, 4)], [(34, 4)]), pad=4)
        data = model.a_set(256, b"\0" * 8 + b"\3abc" if kind == 10 else bytes(8))
        seeds[name] = [
            record(1, encode(0, 1, template, options, model.a_set(257, bytes(8), b"\1" * 8))),
            record(1 | LEAVE_OUT, encode(1, 1, data)),
            record(1 | REPLAY, encode(2, 1, data)),
            record(1 | REPLAY | REFRESH, encode(3, 1, data)),
            record(1 | LATER | AGE, encode(4, 1, data)),
        ]
    seeds["withdraw"] = [
        record(2, model.ipfix(0, 1, model.a_set(2, model.template(256, fields)))),
        record(2, model.ipfix(0, 1, model.a_set(2, model.withdrawal(256)), model.a_set(2, model.withdrawal(2)))),
    ]
    seeds["domains"] = [
        record(n & 7, model.v9(n, n, model.a_set(0, model.template(256 + n, [(8, 4)] * n)))) for n in range(1, 40)
    ]
    seeds["order"] = [record(1, model.v9(n, 1)) for n in (1, 2, 4, 3, 9, 6, 7, 5, 8, 40, 2**31 + 50, 3, 4, 5)]
    one, rows = model.a_set(0, model.template(256, [(8, 4)])), model.a_set(256, b"\1" * 8)
    seeds["filled"] = [record(1, model.v9(0, 1, one, rows, bytes(64))), record(1, model.ipfix(0, 1, rows) + bytes(64))]
    seeds["own"] = [
        record(1 | LEAVE_OUT * (n & 1), model.v9(n // 8 if n % 8 == 0 else 10**6 + n, 1, one if n % 8 == 0 else rows))
        for n in range(40)
    ]
    seeds["counts_flows"] = [
        record(1, model.v9(2 * n, 1, *[one] * (n == 0), rows, count=2 + (n == 0))) for n in range(9)
    ]
    seeds["unnumbered"] = [record(1 | LEAVE_OUT * (n & 1), model.v9(0, 1, rows)) for n in range(6)]
    seeds["unnumbered"] += [record(1, model.v9(9 + n, 1, rows)) for n in range(3)]
    long = model.template(256, [(82, 65535), *[(8, 0)] * 200])
    seeds["empty_sets"] = [
        record(1, model.ipfix(0, 1, model.a_set(2, long))),
        record(1, model.ipfix(0, 1, *[model.a_set(256)] * 200)),
    ]
    table = model.a_set(1, model.options_template(9, 300, [(1, 4)], [(48, 2), (50, 4), (500, 2)]), pad=4)
    whole = model.a_set(1, model.options_template(9, 301, [(1, 4)], [(500, 4)]), pad=4)
    sets = [model.a_set(300, *[bytes([0, 0, 0, 1, 0, k % 3]) + bytes([k] * 6) for k in range(n)]) for n in (1, 5)]
    lone = [model.a_set(301, k.to_bytes(8, "big")) for k in range(3)]
    seeds["rows"] = [record(1, model.v9(0, 1, table, whole, *sets, *lone)), record(1 | REPLAY, model.v9(1, 1, *sets))]
    seeds["unmatched"] = [
        record(3 | AGE, model.v9(0, 1, model.a_set(0, model.template(256, [(8, 4), (12, 4)])))),
        record(3 | REPLAY | LEAVE_OUT, model.v9(1, 1, model.a_set(256, bytes(8)))),
    ]
    for name in ("netflow5", "netflow9", "ipfix", "sflow"):
        for _, _, payload in model.capture_payloads(model.CAPTURES / f"{name}.pcap")[:2]:
            seeds[f"capture_{name}"] = [*seeds.get(f"capture_{name}", []), record(1 | REPLAY, payload[:1020])]
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, records in seeds.items():
        (CORPUS / name).write_bytes(b"".join(records))


def run(runs: int, seconds: int, jobs_corpus: Path) -> int:
    """libFuzzer for so many runs or seconds (0 = no bound); new inputs go to jobs_corpus, findings to build/fuzz."""
    jobs_corpus.mkdir(parents=True, exist_ok=True)
    # A process begins with the peak memory of its parent, which libFuzzer would take for its own: a small one between.
    command = [
        *("sh", "-c", '"$@"; exit $?', "sh"),
        str(build()),
        str(jobs_corpus),
        str(CORPUS),
        f"-artifact_prefix={BUILD}/",
        "-max_len=4096",
        "-print_final_stats=1",
    ]
    command += [f"-runs={runs}"] * bool(runs) + [f"-max_total_time={seconds}"] * bool(seconds)
    return subprocess.run(command, check=False).returncode


def keep(found: Path) -> None:
    """Replaces the hash-named files of the corpus by the smallest choice from them and from `found`."""
    with tempfile.TemporaryDirectory() as place:
        options = ["-merge=1", "-max_len=1024", "-use_counters=0"]
        subprocess.run([str(build()), *options, place, str(CORPUS), str(found)], check=True)
        chosen = {path.name: path.read_bytes() for path in Path(place).iterdir()}
    named = {path.read_bytes() for path in CORPUS.iterdir() if not FOUND.fullmatch(path.name)}
    for path in CORPUS.iterdir():
        if FOUND.fullmatch(path.name):
            path.unlink()
    for name, content in chosen.items():
        if content not in named:
            (CORPUS / name).write_bytes(content)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=1_000_000)
    options.add_argument("--seconds", type=int, default=0)
    options.add_argument("--make-corpus", action="store_true")
    options.add_argument("--keep", nargs="?", const=BUILD / "corpus", type=Path, metavar="DIRECTORY")
    given = options.parse_args()
    if given.make_corpus:
        make_corpus()
        return 0
    if given.keep:
        keep(given.keep)
        return 0
    return run(given.runs, given.seconds, BUILD / "corpus")


if __name__ == "__main__":
    sys.exit(main())
