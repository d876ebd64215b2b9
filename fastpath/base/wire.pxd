# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Bytes of IP, UDP and fragment headers, and their checksums. Pure functions of bytes: no I/O, no state.

Checksums are ones' complement sums over native-endian 16-bit words, stored as they are: the sum is byte-order independent as long as it is read
and written the same way (RFC 1071 §2 B). `sum` values are folded to 16 bits and not complemented.
Called by: tx/raw. Must never read past the length it is given or cast payload bytes to structs (memcpy only).
"""

from libc.string cimport memcpy, memset
from uapi.net cimport htons, u8, u16, u32, u64

cdef enum:
    WIRE_IPV4_HEADER = 20
    WIRE_IPV6_HEADER = 40
    WIRE_UDP_HEADER = 8
    WIRE_FRAGMENT_HEADER = 8       # RFC 8200 §4.5
    WIRE_HEADER_MAX = 56           # IPv6 + fragment + UDP
    WIRE_PROTOCOL_UDP = 17
    WIRE_NEXT_FRAGMENT = 44
    WIRE_MORE_FRAGMENTS = 0x2000   # RFC 791, flags and fragment offset
    WIRE_UDP_MAX_IPV4 = 65507      # payload bytes: 65535 - 20 - 8
    WIRE_UDP_MAX_IPV6 = 65527      # payload bytes: 65535 - 8 (no jumbograms)


cdef inline u32 wire_ip_header(u8 family) noexcept nogil:
    """Bytes of the IP header, without options, of family 4 or 6."""
    return WIRE_IPV4_HEADER if family == 4 else WIRE_IPV6_HEADER


cdef inline u32 wire_overhead(u8 family) noexcept nogil:
    """Bytes of a packet that are not payload: IP and UDP header."""
    return WIRE_UDP_HEADER + wire_ip_header(family)


cdef inline u32 wire_fold(u64 acc) noexcept nogil:
    """Folds a 64-bit accumulation of words into 16 bits, end-around carry."""
    acc = (acc & 0xFFFFFFFFU) + (acc >> 32)
    acc = (acc & 0xFFFFFFFFU) + (acc >> 32)
    acc = (acc & 0xFFFF) + (acc >> 16)
    acc = (acc & 0xFFFF) + (acc >> 16)
    return <u32>((acc & 0xFFFF) + (acc >> 16))


cdef inline u32 wire_sum(const u8 *p, size_t n) noexcept nogil:
    """Folded ones' complement sum of n bytes at any alignment; an odd last byte counts as padded with zero (RFC 768).

    n: at most 65535, so that the 64-bit accumulators cannot overflow."""
    cdef u64 a = 0
    cdef u64 b = 0
    cdef u64 v, w
    cdef u16 tail = 0
    while n >= 16:
        memcpy(&v, p, 8)
        memcpy(&w, p + 8, 8)
        a += (v & 0xFFFFFFFFU) + (v >> 32)
        b += (w & 0xFFFFFFFFU) + (w >> 32)
        p += 16
        n -= 16
    if n >= 8:
        memcpy(&v, p, 8)
        a += (v & 0xFFFFFFFFU) + (v >> 32)
        p += 8
        n -= 8
    while n >= 2:
        memcpy(&tail, p, 2)
        b += tail
        p += 2
        n -= 2
    if n:
        tail = 0
        memcpy(&tail, p, 1)
        b += tail
    return wire_fold(wire_fold(a) + <u64>wire_fold(b))


cdef inline void wire_put16(u8 *p, u16 value_native) noexcept nogil:
    memcpy(p, &value_native, 2)


cdef inline void wire_ipv4(u8 *out, u16 total_length, u16 id_be, u16 fragment, u8 ttl, u8 tos, const u8 *source,
                           const u8 *destination) noexcept nogil:
    """Writes 20 bytes of IPv4 header with its checksum (RFC 791 §3.1). fragment: flags and offset in 8-byte units, host order."""
    out[0] = 0x45
    out[1] = tos
    wire_put16(out + 2, htons(total_length))
    wire_put16(out + 4, id_be)
    wire_put16(out + 6, htons(fragment))
    out[8] = ttl
    out[9] = WIRE_PROTOCOL_UDP
    wire_put16(out + 10, 0)
    memcpy(out + 12, source, 4)
    memcpy(out + 16, destination, 4)
    wire_put16(out + 10, <u16>~wire_sum(out, WIRE_IPV4_HEADER))


cdef inline void wire_ipv6(u8 *out, u16 payload_length, u8 next_header, u8 hop_limit, u8 traffic_class, const u8 *source,
                           const u8 *destination) noexcept nogil:
    """Writes 40 bytes of IPv6 header, flow label 0 (RFC 8200 §3)."""
    out[0] = 0x60 | (traffic_class >> 4)
    out[1] = <u8>(traffic_class << 4)
    out[2] = 0
    out[3] = 0
    wire_put16(out + 4, htons(payload_length))
    out[6] = next_header
    out[7] = hop_limit
    memcpy(out + 8, source, 16)
    memcpy(out + 24, destination, 16)


cdef inline void wire_ipv6_fragment(u8 *out, u32 offset, bint more, u32 id_be) noexcept nogil:
    """Writes 8 bytes of fragment header for UDP (RFC 8200 §4.5). offset: bytes, a multiple of 8."""
    out[0] = WIRE_PROTOCOL_UDP
    out[1] = 0
    wire_put16(out + 2, htons(<u16>(offset | (1 if more else 0))))
    memcpy(out + 4, &id_be, 4)


cdef inline u32 wire_pseudo(const u8 *source, const u8 *destination, u32 address_bytes, u32 udp_length) noexcept nogil:
    """Folded sum of the pseudo header (RFC 768; RFC 8200 §8.1). address_bytes: 4 or 16. udp_length: header and payload."""
    return wire_fold(<u64>wire_sum(source, address_bytes) + wire_sum(destination, address_bytes)
                     + htons(WIRE_PROTOCOL_UDP) + htons(<u16>udp_length))


cdef inline void wire_udp(u8 *out, u16 source_port_be, u16 destination_port_be, u32 udp_length, u32 pseudo_sum, u32 payload_sum,
                          bint checksum) noexcept nogil:
    """Writes 8 bytes of UDP header (RFC 768). A checksum that computes to 0 is sent as 0xFFFF; checksum False writes 0, "none"."""
    cdef u16 value
    wire_put16(out, source_port_be)
    wire_put16(out + 2, destination_port_be)
    wire_put16(out + 4, htons(<u16>udp_length))
    wire_put16(out + 6, 0)
    if checksum:
        value = <u16>~wire_fold(<u64>pseudo_sum + payload_sum + source_port_be + destination_port_be + htons(<u16>udp_length))
        wire_put16(out + 6, value if value else 0xFFFF)


cdef inline u32 wire_fragment_bytes(u32 mtu, u32 header_bytes) noexcept nogil:
    """IP payload bytes of every fragment but the last: what fits the MTU, rounded down to a multiple of 8 (RFC 791 §3.2)."""
    return ((mtu - header_bytes) >> 3) << 3


cdef inline bint wire_is_ipv4_mapped(const u8 *address) noexcept nogil:
    """True for ::ffff:a.b.c.d (RFC 4291 §2.5.5.2)."""
    cdef u64 high
    memcpy(&high, address, 8)
    return high == 0 and address[8] == 0 and address[9] == 0 and address[10] == 0xFF and address[11] == 0xFF


cdef inline void wire_map_ipv4(u8 *out, const u8 *ipv4) noexcept nogil:
    """Writes the IPv4-mapped form, 16 bytes."""
    memset(out, 0, 10)
    out[10] = 0xFF
    out[11] = 0xFF
    memcpy(out + 12, ipv4, 4)
