# cython: language_level=3
"""What a worker and the BPF program copies.bpf.c have in common (fastpath/bpf/copies.h): a frame's call, the values of the maps."""

from uapi.net cimport u8, u16, u32, u64

cdef extern from "bpf/copies.h" nogil:
    const u32 COPIES_OF_CALL
    const u32 COPIES_WORKERS
    const u32 COPIES_SLOTS
    const u16 COPIES_KIND

    ctypedef struct copies_call_t "struct copies_call":
        u32 token
        u16 worker
        u16 count
        u16 datagrams
        u8 six
        u8 tos
        u16 kind

    ctypedef struct copies_receiver_t "struct copies_receiver":
        u32 device
        u32 address[4]
        u16 port
        u8 ttl
        u8 set_tos
        u8 tos
        u8 link[14]

    ctypedef struct copies_counters_t "struct copies_counters":
        u64 sent
        u64 sent_bytes
        u64 no_buffer
        u64 other
