# cython: language_level=3
"""What a worker and the BPF program offload.bpf.c have in common (fastpath/bpf/offload.h), and the ring buffer between them
(kernel/bpf/ringbuf.c): a record's head is its length with two bits; producer and consumer count bytes."""

from uapi.net cimport u8, u16, u32, u64

cdef extern from "bpf/offload.h" nogil:
    const u32 OFFLOAD_SETS
    const u32 OFFLOAD_RECEIVERS
    const u32 OFFLOAD_SESSIONS
    const u32 OFFLOAD_WORKERS
    const u64 OFFLOAD_ON
    const u64 OFFLOAD_PLACE
    const u64 OFFLOAD_EXPRESS
    const u64 OFFLOAD_EXPRESS_PLACES
    const u32 OFFLOAD_OUTPUTS
    u64 offload_off(u64 arrival_ns, u64 place)
    u64 offload_on(u64 made, u64 set, u64 place, u64 express)

    ctypedef struct offload_key_t "struct offload_key":
        u8 address[16]
        u16 port
        u16 listener

    ctypedef struct offload_session_t "struct offload_session":
        u64 word
        u64 express

    ctypedef struct offload_set_t "struct offload_set":
        u64 taken
        u64 taken_bytes
        u64 unseen
        u64 made
        u32 on
        u32 count
        u32 limit
        u32 ring
        u32 room
        u32 slow

    ctypedef struct offload_record_t "struct offload_record":
        u8 address[16]
        u16 port
        u16 listener
        u8 six
        u8 ttl
        u8 tos
        u32 length
        u32 segment
        u32 session
        u32 set
        u64 arrival_ns

cdef extern from "uapi/compat.h" nogil:
    int bpf_map_set(int map, const void *key, const void *value, u64 flags)
    const u32 BPF_RINGBUF_BUSY_BIT
    const u32 BPF_RINGBUF_DISCARD_BIT
    const u32 BPF_RINGBUF_HDR_SZ
    const u64 BPF_NOEXIST
