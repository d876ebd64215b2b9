# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""One hash of an address, for every table with addresses as keys. It has no seed, so it is the same on every worker and host and after every
restart. And one hash of words, which has a seed where an attacker could choose the words.

Pure. Called by: route/, flow/, tx/lane.pxi, handles/plan.pxi.
"""

from libc.string cimport memcpy
from uapi.net cimport u8, u32, u64


cdef inline u64 hash_wide(const u8 *address) noexcept nogil:
    """Of 16 bytes; the multipliers are odd 64-bit constants of good avalanche (fractional parts of the golden ratio and of pi). The upper half
    is better than the lower."""
    cdef u64 a, b
    memcpy(&a, address, 8)
    memcpy(&b, address + 8, 8)
    a = (a ^ (b * <u64>0x9E3779B97F4A7C15)) * <u64>0xC2B2AE3D27D4EB4F
    a ^= a >> 29
    a *= <u64>0x9E3779B97F4A7C15
    return a


cdef inline u32 hash_address(const u8 *address) noexcept nogil:
    """The upper half of hash_wide()."""
    return <u32>(hash_wide(address) >> 32)


cdef inline u64 hash_mix(u64 a, u64 b) noexcept nogil:
    """Of two words; chained for more. Seeded by whoever begins the chain with a secret."""
    a = (a ^ b) * <u64>0x9E3779B97F4A7C15
    a ^= a >> 32
    a *= <u64>0xC2B2AE3D27D4EB4F
    return a ^ (a >> 29)
