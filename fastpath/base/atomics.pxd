# cython: language_level=3
"""Single-writer counters and the published pointer.

A counter has one writer, its worker, which adds with a relaxed load and store, without a lock prefix and without torn values. A reader loads
relaxed. A pointer is published with release and taken with acquire. Source: C11 7.17.3; HOUSE.md, "Life of a scrape".
"""

from uapi.net cimport u32, u64

cdef extern from "uapi/compat.h" nogil:
    u64 atomic_load64 "smp_load64"(const u64 *p)
    void atomic_store64 "smp_store64"(u64 *p, u64 v)
    u32 atomic_load32 "smp_load32"(const u32 *p)
    void atomic_store32 "smp_store32"(u32 *p, u32 v)
    u32 atomic_load32_acquire "smp_load32_acquire"(const u32 *p)
    void atomic_store32_release "smp_store32_release"(u32 *p, u32 v)
    u32 atomic_fence_load32 "smp_fence_load32"(const u32 *p)
    void atomic_fence "smp_fence"()                                # full: a store before it, a load after it
    bint ATOMIC_STORES_IN_ORDER "SMP_STORES_IN_ORDER"
    void atomic_fence_release "smp_fence_release"()
    bint atomic_change32 "smp_change32"(u32 *p, u32 old, u32 v)   # stores v if old is there
    bint atomic_change64 "smp_change64"(u64 *p, u64 old, u64 v)
    void atomic_count "smp_count"(u64 *p)                         # one more, of a counter with many writers
    void *atomic_load_acquire "smp_load_acquire"(void **p)
    void *atomic_exchange "smp_exchange"(void **p, void *v)
    u64 atomic_load64_acquire "smp_load64_acquire"(const u64 *p)
    void atomic_store64_release "smp_store64_release"(u64 *p, u64 v)


cdef inline void atomics_add(u64 *counter, u64 n) noexcept nogil:
    """Adds n; the caller is the counter's only writer."""
    atomic_store64(counter, atomic_load64(counter) + n)
