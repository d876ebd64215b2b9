"""The order of rooms inside fastpath/, for what headers cimport and for what the bodies (.pxi) use.

A .pxi has no imports: all bodies are included by _fastpath.pyx and share its names. So each says in its first lines
what it needs, `# needs: room: file, file; room: file`, and this guard holds that against the names that stand in its
body. Each kind of fault is planted in a copy of the tree, to see that it is found.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.tree import ROOT

FASTPATH = ROOT / "fastpath"
FACE = "_fastpath.pyx"
# From the ground up. A file uses its own room and the rooms of the floors below. Rooms of one floor know nothing of
# each other.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"bpf"}),
    frozenset({"uapi"}),
    frozenset({"base"}),
    frozenset({"route", "shape", "flow"}),
    frozenset({"rx", "tx"}),
    frozenset({"worker"}),
    frozenset({"handles"}),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# What a file that does no I/O takes from the kernel's declarations: integer types and byte order.
PURE_ROOMS = ("base", "route", "shape", "flow")
PURE_FROM_UAPI = re.compile(r"^(u8|u16|u32|u64|i32|i64|hton[sl]|ntoh[sl]|iovec|htobe\d+|be\d+toh)$")

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\s+(\([^)]*\)|[^\n]*)|cimport\s+([\w.]+))", re.MULTILINE)
INCLUDE = re.compile(r'^include "([^"]+)"', re.MULTILINE)
NOT_CODE = re.compile(r'"""(?:[^\\]|\\.)*?"""|"(?:[^"\\\n]|\\.)*"|#[^\n]*', re.DOTALL)
DEFINED = (
    re.compile(r"^cdef class (\w+)", re.MULTILINE),
    re.compile(r"^ctypedef (?:struct|enum|union) (\w+)", re.MULTILINE),
    re.compile(r"^ctypedef [^\n(]*\(\*(\w+)\)", re.MULTILINE),
    re.compile(r"^cdef (?!class |enum|extern)[^\n(=]*?(\w+)\s*(?:\(|=|$)", re.MULTILINE),
    re.compile(r"^def (\w+)", re.MULTILINE),
    re.compile(r"^(\w+) = ", re.MULTILINE),
)
ENUM = re.compile(r"^cdef enum:\n((?:[ \t]+[^\n]*\n|\n)+)", re.MULTILINE)
LOCAL = re.compile(r"^[ \t]+cdef (?!class )([^\n(]+)$", re.MULTILINE)
SIGNATURE = re.compile(r"^[ \t]*(?:cdef|def) [^\n=]*?\w+\(((?:[^()]|\([^()]*\))*)\)", re.MULTILINE)


def bodies(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.pxi"))


def headers(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.pxd") if path.stat().st_size)


def code(path: Path) -> str:
    """The text without comments and strings."""
    return NOT_CODE.sub("", path.read_text())


def stem(name: str) -> str:
    """`tx/raw.pxi` -> `tx/raw`."""
    return name.rsplit(".", 1)[0]


def cimports(text: str) -> Iterator[tuple[str, list[str]]]:
    """(file without suffix, names) of every cimport from a file of ours."""
    for match in CIMPORT.finditer(text):
        module = match[1] or match[3]
        if module.split(".")[0] not in ("libc", "cpython", "posix", "cython"):
            yield module.replace(".", "/"), re.findall(r"\w+", match[2] or "")


def defined(text: str) -> set[str]:
    names = {match[1] for pattern in DEFINED for match in pattern.finditer(text)}
    for block in ENUM.finditer(text):
        names |= set(re.findall(r"^[ \t]+(\w+)", block[1], re.MULTILINE))
    return names


def shared(root: Path) -> dict[str, str]:
    """Each name of the shared namespace, and the file that it is from (without suffix)."""
    names = {name: source for source, taken in cimports(code(root / FACE)) for name in taken}
    for body in bodies(root):
        names.update(dict.fromkeys(defined(code(root / body)), stem(body)))
    return names


def own_names(text: str) -> set[str]:
    """Variables and parameters of the functions of a file: they stand for no shared name, unless they are called."""
    found = set()
    for match in LOCAL.finditer(text):
        found |= set(re.findall(r"(\w+)\s*(?:\[[^\]]*\]\s*)*(?:=[^,]*)?(?:,|$)", match[1]))
    for match in SIGNATURE.finditer(text):
        for parameter in match[1].split(","):
            found |= set(re.findall(r"(\w+)\s*(?:not None\s*)?(?:=.*)?$", parameter.strip(), re.DOTALL))
    return found


def used(root: Path, body: str, names: dict[str, str]) -> set[str]:
    """The files, without suffix, whose names a body uses; its own is left out."""
    text = code(root / body)
    own = own_names(text)
    found = set()
    for match in re.finditer(r"(?<![\w.])(?<!\bdef )([A-Za-z_]\w*)(\s*\()?", text):
        if match[1] in names and (match[1] not in own or match[2]):
            found.add(names[match[1]])
    return found - {stem(body)}


def needs(root: Path, body: str) -> set[str] | None:
    """What the first lines of a body say that it needs; None = they do not say."""
    lines = (root / body).read_text().splitlines()
    if not lines or not lines[0].startswith("# needs: "):
        return None
    said = lines[0].removeprefix("# needs: ")
    for line in lines[1:]:
        if not line.startswith("#        "):
            break
        said += " " + line[1:].strip()
    found = set()
    for part in said.split(";"):
        room, _, listed = part.partition(":")
        found |= {f"{room.strip()}/{file.strip()}" for file in listed.split(",")}
    return found


def needs_line(files: set[str]) -> str:
    """How it is to be written, for whoever has to."""
    rooms: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda file: (HEIGHT.get(file.split("/")[0], 99), file)):
        room, _, rest = file.partition("/")
        rooms.setdefault(room, []).append(rest)
    line, lines = "# needs:", []
    for word in "; ".join(f"{room}: {', '.join(listed)}" for room, listed in rooms.items()).split():
        if len(line) + 1 + len(word) > 140:
            lines.append(line)
            line = "#       "
        line += " " + word
    return "\n".join([*lines, line])


def reaches(user: str, target: str) -> bool:
    """Whether a file may use another one."""
    here, there = user.split("/")[0], target.split("/")[0]
    return there in HEIGHT and (here == there or HEIGHT[there] < HEIGHT[here])


def faults(root: Path) -> list[str]:
    found = []
    names = shared(root)
    included = INCLUDE.findall((root / FACE).read_text())
    for path in sorted(path for kind in ("pxd", "pxi", "pyx", "h") for path in root.rglob(f"*.{kind}")):
        name = str(path.relative_to(root))
        if name != FACE and ("/" not in name or name.split("/")[0] not in HEIGHT):
            found.append(f"{name} is in no room: {', '.join(HEIGHT)}")
    if found:
        return found
    for name in headers(root):
        for target, _ in cimports((root / name).read_text()):
            if not reaches(name, target):
                found.append(f"{name} cimports {target}, which is not below it")
    for body in bodies(root):
        said, real = needs(root, body), used(root, body, names)
        if said is None or said != real:
            found.append(f"{body} does not say what it uses in its first lines, which would be:\n{needs_line(real)}")
        found += [f"{body} uses {file}, which is not below it" for file in sorted(real) if not reaches(body, file)]
        if included.count(body) != 1:
            found.append(f"{body} is not included once by {FACE}")
    heights = [HEIGHT[body.split("/")[0]] for body in included]
    if heights != sorted(heights):
        found.append(f"{FACE} does not include the rooms from the ground up")
    return found


def test_files_use_what_is_below_them_and_say_so() -> None:
    assert faults(FASTPATH) == [], "\n".join(faults(FASTPATH))


# ---- every kind of fault is found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FASTPATH, tmp_path / "fastpath"))


def change(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        before = (root / name).read_text()
        after = edit(before)
        assert after != before
        (root / name).write_text(after)

    return plant


def say(text: str, said: Callable[[str], str]) -> str:
    """A body with another needs line."""
    first, rest = text.split("\n", 1)
    return said(first) + "\n" + rest


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a header cimports from above": (
        change("base/batch.pxd", lambda text: text + "\nfrom tx.engine cimport tx_t\n"),
        "base/batch.pxd cimports tx/engine",
    ),
    "a header cimports from the room beside": (
        change("route/match.pxd", lambda text: text + "\nfrom flow.scan cimport flow_seen_t\n"),
        "route/match.pxd cimports flow/scan",
    ),
    "a body uses what is above and says so": (
        change(
            "tx/raw.pxi", lambda text: say(text, lambda line: line + "; worker: work") + "\n\ncdef work_t *raw_work\n"
        ),
        "tx/raw.pxi uses worker/work",
    ),
    "a body uses what is above and does not say so": (
        change("rx/ring.pxi", lambda text: text + "\n\ncdef void ring_up(worker_t *w) noexcept nogil:\n    pass\n"),
        "rx/ring.pxi uses worker/state",
    ),
    "a body uses the room beside": (
        change("rx/recvmmsg.pxi", lambda text: text + "\n\ncdef tx_t *rx_way\n"),
        "rx/recvmmsg.pxi uses tx/engine",
    ),
    "a body does not say that it uses what is below": (
        change("tx/udp.pxi", lambda text: text + "\n\ncdef u32 udp_sum = match_rules\n"),
        "tx/udp.pxi does not say",
    ),
    "a body says that it uses what it does not": (
        change("tx/udp.pxi", lambda text: say(text, lambda line: line + "; flow: scan")),
        "tx/udp.pxi does not say",
    ),
    "a body says nothing": (
        change("worker/loop.pxi", lambda text: text.replace("# needs:", "# uses:")),
        "worker/loop.pxi does not say",
    ),
    "a file is in no room": (lambda root: (root / "more.pxi").touch(), "more.pxi is in no room"),
    "a room is new": (
        lambda root: shutil.copytree(root / "shape", root / "form") and None,
        "form/run.pxd is in no room",
    ),
    "a body is not included": (
        change(FACE, lambda text: text.replace('include "tx/raw.pxi"\n', "")),
        "tx/raw.pxi is not included once",
    ),
    "bodies are included from above": (
        change(FACE, lambda text: text.replace('include "rx/ring.pxi"\n', "") + 'include "rx/ring.pxi"\n'),
        "does not include the rooms from the ground up",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(tree: Path, kind: str) -> None:
    plant, message = FAULTS[kind]
    plant(tree)
    assert any(message in fault for fault in faults(tree)), faults(tree)


# ---- what the rooms are


@pytest.mark.parametrize("name", [name for name in headers(FASTPATH) if name.startswith(PURE_ROOMS)])
def test_pure_files_do_no_io(name: str) -> None:
    """Bytes in, bytes out: they take types and byte order from uapi, never a system call."""
    taken = {
        word for source, names in cimports((FASTPATH / name).read_text()) for word in names if source == "uapi/net"
    }
    assert {word for word in taken if not PURE_FROM_UAPI.match(word)} == set()


def test_the_datapath_sees_no_python_below_its_handles() -> None:
    """Headers hold no Python objects: no `object`, no `def`, and every function says noexcept nogil."""
    for name in headers(FASTPATH):
        source = (FASTPATH / name).read_text()
        assert not re.search(r"^\s*def\s", source, re.MULTILINE), name
        for match in re.finditer(r"^cdef inline [^\n]*\((?:[^()]|\([^()]*\))*\)([^\n]*):", source, re.MULTILINE):
            assert "noexcept nogil" in match[1], f"{name}: {match[0].splitlines()[0]}"
