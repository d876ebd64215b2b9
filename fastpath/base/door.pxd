# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""What goes through a door: messages of records, one record a datagram, many a message.

A door is a pair of AF_UNIX SOCK_SEQPACKET sockets between a worker and a gateway (a transport that is not UDP). One datagram a message
would cost over a microsecond on each side, and a message of many a tenth of that (bench/results/door.json). A record is a header of
DOOR_HEADER bytes, then the datagram; records follow each other without padding, so nothing here is aligned and all is read by memcpy.
Numbers are in the order of the host: both ends are on it. Invariants: a message has at most DOOR_MESSAGE bytes, which the largest
datagram fits in; a reader believes nothing of it. Pure data. Used by: rx/door.pxi, tx/door.pxi, handles/door.pxi.
"""

from libc.string cimport memcpy
from base.batch cimport exporter_t
from base.wire cimport wire_is_ipv4_mapped
from uapi.net cimport u8, u16, u32, u64

cdef enum:
    DOOR_VERSION = 1
    DOOR_HEADER = 40
    DOOR_MESSAGE = 65600           # bytes; 40 + 65535 and what makes slots of that size share no cache sets (RX_SLOT + 64)
    DOOR_RECORDS = 64              # datagrams a message, as written here; a reader takes any number
    DOOR_MESSAGES = 8              # messages a call: a whole batch where they are full

    DOOR_SOUND = 0                 # what door_read() finds
    DOOR_STRANGE = 1               # an address that is none; what follows can be read
    DOOR_BROKEN = 2                # cut short, or of another version: what follows cannot be told

ctypedef struct door_record_t:     # no padding: DOOR_HEADER bytes
    u32 octets                     # of the datagram
    u8 version
    u8 family                      # of the exporter, 4 or 6
    u8 ttl                         # as received, 0 = unknown
    u8 tos
    u64 arrival_ns                 # CLOCK_REALTIME, 0 = unknown
    u8 address[16]                 # IPv4 in IPv4-mapped form
    u16 port_be
    u16 listener                   # slot of the listener it came in by; not read on the way in: a door belongs to one
    u32 receiver                   # id of the receiver's counters; likewise


cdef inline u32 door_read(const u8 *at, u32 left, door_record_t *record) noexcept nogil:
    """Reads the header at `at`, of which `left` bytes are there. DOOR_SOUND and DOOR_STRANGE: the whole datagram is there, too."""
    if left < DOOR_HEADER:
        return DOOR_BROKEN
    memcpy(record, at, DOOR_HEADER)
    if record.version != DOOR_VERSION or record.octets > left - DOOR_HEADER:
        return DOOR_BROKEN
    if record.family == 4:
        return DOOR_SOUND if wire_is_ipv4_mapped(record.address) else DOOR_STRANGE
    return DOOR_SOUND if record.family == 6 else DOOR_STRANGE


cdef inline void door_exporter(const door_record_t *record, exporter_t *out) noexcept nogil:
    """The exporter of a sound record. An IPv4-mapped one is IPv4, whatever the record says."""
    memcpy(out.address, record.address, 16)
    out.port_be = record.port_be
    out.family = 4 if wire_is_ipv4_mapped(record.address) else 6
    out.ttl = record.ttl
    out.tos = record.tos


cdef inline void door_write(u8 *at, const exporter_t *exporter, u32 octets, u64 arrival_ns, u32 listener, u32 receiver) noexcept nogil:
    """Writes the header of a datagram of `octets` bytes, which is to follow it."""
    cdef door_record_t record
    record.octets = octets
    record.version = DOOR_VERSION
    record.family = exporter.family
    record.ttl = exporter.ttl
    record.tos = exporter.tos
    record.arrival_ns = arrival_ns
    memcpy(record.address, exporter.address, 16)
    record.port_be = exporter.port_be
    record.listener = <u16>listener
    record.receiver = receiver
    memcpy(at, &record, DOOR_HEADER)
