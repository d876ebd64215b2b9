"""BPF programs by libbpf, loaded when they are needed: objects, maps, and hooks that die with the process.

Purpose: the one place that calls into the library (libbpf.so.1; 1.1 of Debian 12 is enough). Invariants: what `load`
gives is closed by `close`, or by the end of the process, however that comes: a hook is a BPF link, so nothing stays
behind. Where the library or the rights are missing, `OSError` says which. Must never know what a program is for.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

NAME: Final = "libbpf.so.1"
XDP_FLAGS_SKB_MODE: Final = 2
XDP_FLAGS_DRV_MODE: Final = 4
LOG_BYTES: Final = 2048
"""Of what the library says of a program that the kernel refuses, the last."""
LIBRARY_ERRORS: Final = 4000
"""From here on the library's own numbers begin."""
MESSAGE_BYTES: Final = 1 << 24
"""Of one message of the library: the log of the verifier is one."""
_WARN: Final = 0
_DEVMAP: Final = 14  # enum bpf_map_type
_RING_BUFFER: Final = 27
_LIVE_FRAMES: Final = 2  # BPF_F_TEST_XDP_LIVE_FRAMES


class Hook(enum.IntEnum):
    """enum bpf_attach_type (include/uapi/linux/bpf.h). TCX: Linux 6.6."""

    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class _LinkOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iterator", ctypes.c_void_p),
        ("iterator_length", ctypes.c_uint32),
        ("target_btf", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 4),
    )


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_Say = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Library:
    """The functions of libbpf used here. Raises OSError when it is not installed. `said`: its last warnings."""

    def __init__(self) -> None:
        self.lib: Any = ctypes.CDLL(NAME, use_errno=True)
        self.said = ""
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]
        self._say = _Say(self._listen)  # must outlive the library's use of it
        self.lib.libbpf_set_print(self._say)
        pointer, number, word, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_size_t
        for name, result, arguments in (
            ("bpf_object__open_mem", pointer, [ctypes.c_char_p, size, pointer]),
            ("bpf_object__load", number, [pointer]),
            ("bpf_object__close", None, [pointer]),
            ("bpf_object__next_program", pointer, [pointer, pointer]),
            ("bpf_object__next_map", pointer, [pointer, pointer]),
            ("bpf_program__name", ctypes.c_char_p, [pointer]),
            ("bpf_program__fd", number, [pointer]),
            ("bpf_program__set_autoload", number, [pointer, ctypes.c_bool]),
            ("bpf_map__name", ctypes.c_char_p, [pointer]),
            ("bpf_map__fd", number, [pointer]),
            ("bpf_map__type", number, [pointer]),
            ("bpf_map__key_size", word, [pointer]),
            ("bpf_map__value_size", word, [pointer]),
            ("bpf_map__set_max_entries", number, [pointer, word]),
            ("bpf_map__reuse_fd", number, [pointer, number]),
            ("bpf_map_lookup_elem", number, [number, ctypes.c_char_p, pointer]),
            ("bpf_map_update_elem", number, [number, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64]),
            ("bpf_map_delete_elem", number, [number, ctypes.c_char_p]),
            ("bpf_map_create", number, [number, ctypes.c_char_p, word, word, word, pointer]),
            ("bpf_link_create", number, [number, number, number, pointer]),
            ("bpf_raw_tracepoint_open", number, [ctypes.c_char_p, number]),
            ("bpf_prog_test_run_opts", number, [number, pointer]),
            ("bpf_prog_query", number, [number, number, word, pointer, pointer, pointer]),
            ("libbpf_num_possible_cpus", number, []),
        ):
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.cpus: int = self.lib.libbpf_num_possible_cpus()

    def _listen(self, level: int, text: bytes, values: int) -> int:
        if level == _WARN:
            room = ctypes.create_string_buffer(MESSAGE_BYTES)
            self._format(room, MESSAGE_BYTES, text, values)
            self.said = (self.said + room.value.decode("utf-8", "replace"))[-LOG_BYTES:]
        return 0

    def error(self, what: str) -> OSError:
        """What has just failed, with what the library said of it; its warnings are forgotten then."""
        number, said, self.said = ctypes.get_errno(), self.said.strip(), ""
        if not 0 < number < LIBRARY_ERRORS:
            number = errno.EINVAL
        return OSError(number, f"{what}: {os.strerror(number)}" + (f" ({said})" if said else ""))


_library: list[Library] = []


def library() -> Library:
    """The one of this process. Raises OSError when there is none."""
    if not _library:
        _library.append(Library())
    return _library[0]


def attached(device: int, hook: Hook) -> int:
    """How many programs are at an interface's hook, ours and others'. Raises OSError."""
    given = library()
    many, flags = ctypes.c_uint32(0), ctypes.c_uint32(0)
    if given.lib.bpf_prog_query(device, hook, 0, ctypes.byref(flags), None, ctypes.byref(many)) != 0:
        raise given.error(f"bpf: programs at {hook.name.lower()} of interface {device}")
    return many.value


def ring_buffer(octets: int) -> int:
    """Descriptor of a map of type BPF_MAP_TYPE_RINGBUF with so many bytes, a power of two of pages. Raises OSError."""
    given = library()
    fd: int = given.lib.bpf_map_create(_RING_BUFFER, b"ring", 0, 0, octets, None)
    if fd < 0:
        raise given.error("bpf: a ring buffer")
    return fd


def device_map(entries: int) -> int:
    """Descriptor of a map of type BPF_MAP_TYPE_DEVMAP, of interfaces and a program each. Raises OSError."""
    given = library()
    fd: int = given.lib.bpf_map_create(_DEVMAP, b"devices", 4, 8, entries, None)
    if fd < 0:
        raise given.error("bpf: a map of interfaces")
    return fd


def put(fd: int, key: bytes, value: bytes) -> None:
    """Into a map that is a descriptor only; both have its sizes. Raises OSError."""
    given = library()
    if given.lib.bpf_map_update_elem(fd, key, value, 0) != 0:
        raise given.error("bpf: update of a map")


class Map:
    """Keys and values as bytes, of the sizes that the program says.

    Of a map with a value for each CPU, `get` gives them all, one after the other, each padded to eight bytes. room: how
    many bytes that is.
    """

    def __init__(self, library: Library, handle: int) -> None:
        lib = library.lib
        self._lib, self._error = lib, library.error
        self.fd: int = lib.bpf_map__fd(handle)
        self.key_size: int = lib.bpf_map__key_size(handle)
        self.value_size: int = lib.bpf_map__value_size(handle)
        per_cpu = lib.bpf_map__type(handle) in (5, 6, 10)  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
        self.room = (self.value_size + 7) // 8 * 8 * library.cpus if per_cpu else self.value_size

    def get(self, key: bytes) -> bytes | None:
        """None: there is no such key. Raises OSError."""
        room = ctypes.create_string_buffer(self.room)
        if self._lib.bpf_map_lookup_elem(self.fd, self._key(key), room) == 0:
            return room.raw
        if ctypes.get_errno() == errno.ENOENT:
            return None
        raise self._error("bpf: look-up in a map")

    def put(self, key: bytes, value: bytes) -> None:
        """Raises OSError: E2BIG or ENOSPC when there is no room."""
        if len(value) != self.room:
            raise ValueError(f"the map has values of {self.room} bytes, not {len(value)}")
        if self._lib.bpf_map_update_elem(self.fd, self._key(key), value, 0) != 0:
            raise self._error("bpf: update of a map")

    def delete(self, key: bytes) -> bool:
        """False: there was no such key."""
        return bool(self._lib.bpf_map_delete_elem(self.fd, self._key(key)) == 0)

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"the map has keys of {self.key_size} bytes, not {len(key)}")
        return key


class Link:
    """A program at a hook, until `close` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Objects:
    """What is in one compiled file: programs (fd by name) and maps (by name)."""

    def __init__(
        self,
        image: bytes,
        programs: Iterable[str],
        entries: Mapping[str, int] = {},
        shared: Mapping[str, Map] = {},
    ) -> None:
        """image: an ELF file of clang's. programs: those that are loaded; the kernel never sees the others. entries:
        how many a map may have, if not what the file says. shared: maps that there are already, by their name here.
        Raises OSError: refused, with what the verifier says.
        """
        self._library = library()
        lib = self._library.lib
        self._handle: int | None = lib.bpf_object__open_mem(image, len(image), None)
        if not self._handle:
            raise self._library.error("bpf: not an object file that libbpf can read")
        wanted = set(programs)
        try:
            every = {lib.bpf_program__name(one).decode(): one for one in self._each("bpf_object__next_program")}
            if missing := wanted - every.keys():
                raise ValueError(f"no such program: {', '.join(sorted(missing))}")
            for name, one in every.items():
                lib.bpf_program__set_autoload(one, name in wanted)
            found = {lib.bpf_map__name(one).decode(): one for one in self._each("bpf_object__next_map")}
            for name, many in entries.items():
                lib.bpf_map__set_max_entries(found[name], many)
            for name, there in shared.items():
                if lib.bpf_map__reuse_fd(found[name], there.fd) != 0:
                    raise self._library.error(f"bpf: the map {name} of another program")
            if lib.bpf_object__load(self._handle) != 0:
                raise self._library.error("bpf: the kernel refuses the program")
            self.programs: dict[str, int] = {name: lib.bpf_program__fd(every[name]) for name in wanted}
            self.maps = {name: Map(self._library, one) for name, one in found.items()}
        except BaseException:
            self.close()
            raise

    def _each(self, function: str) -> Sequence[int]:
        call, found, last = getattr(self._library.lib, function), [], None
        while last := call(self._handle, last):
            found.append(last)
        return found

    def attach(self, program: str, device: int, hook: Hook, flags: int = 0) -> Link:
        """device: an interface's index, in the network namespace of the caller. flags: XDP_FLAGS_*. Raises OSError."""
        options = _LinkOptions(size=ctypes.sizeof(_LinkOptions), flags=flags)
        given = ctypes.byref(options) if flags else None
        fd = self._library.lib.bpf_link_create(self.programs[program], device, hook, given)
        if fd < 0:
            raise self._library.error(f"bpf: {hook.name.lower()} of interface {device}")
        return Link(fd)

    def attach_raw(self, program: str, tracepoint: str) -> Link:
        """A program at a tracepoint of the kernel. Raises OSError."""
        fd = self._library.lib.bpf_raw_tracepoint_open(tracepoint.encode(), self.programs[program])
        if fd < 0:
            raise self._library.error(f"bpf: tracepoint {tracepoint}")
        return Link(fd)

    def tell(self, program: str, *arguments: int) -> None:
        """For tests: runs a program of a tracepoint once, with these arguments. Linux 5.10. Raises OSError."""
        given = bytes((ctypes.c_uint64 * len(arguments))(*arguments))
        options = _RunOptions(size=ctypes.sizeof(_RunOptions), ctx_in=given, ctx_size_in=len(given))
        if self._library.lib.bpf_prog_test_run_opts(self.programs[program], ctypes.byref(options)) != 0:
            raise self._library.error("bpf: a run for a test")

    def run_live(self, program: str, frame: bytes) -> None:
        """Has the kernel do what an XDP program says of this frame, once. Linux 5.18. Raises OSError."""
        options = _RunOptions(
            size=ctypes.sizeof(_RunOptions), data_in=frame, data_size_in=len(frame), repeat=1, flags=_LIVE_FRAMES
        )
        if self._library.lib.bpf_prog_test_run_opts(self.programs[program], ctypes.byref(options)) != 0:
            raise self._library.error("bpf: a run for a test")

    def run(self, program: str, packet: bytes, room: int = 0) -> tuple[int, bytes]:
        """BPF_PROG_TEST_RUN: what the program returns for this packet, and the packet afterwards, of `room` bytes at
        most (0: as many as it has and 256 more). Raises OSError.
        """
        room = room or len(packet) + 256
        after = ctypes.create_string_buffer(room)
        options = _RunOptions(
            size=ctypes.sizeof(_RunOptions),
            data_in=packet,
            data_size_in=len(packet),
            data_out=ctypes.addressof(after),
            data_size_out=room,
            repeat=1,
        )
        if self._library.lib.bpf_prog_test_run_opts(self.programs[program], ctypes.byref(options)) != 0:
            raise self._library.error("bpf: a run for a test")
        return options.retval, after.raw[: options.data_size_out]

    def close(self) -> None:
        """Hooks stay until their links are closed."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.lib.bpf_object__close(handle)
