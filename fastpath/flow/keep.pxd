# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Sampling that collectors can decode: templates are never skipped, and freq_mode = "exporter" selects whole exporters.

Called by: the worker, for receivers with freq > 1, before sample_keep(). A datagram with templates is always sent and does not change the
countdown (FLOW.md rule 3).
"""

from base.hash cimport hash_wide
from flow.scan cimport FLOW_OPTIONS_TEMPLATE, FLOW_TEMPLATE, flow_seen_t
from uapi.net cimport u8, u32, u64


cdef inline bint flow_always(const flow_seen_t *s) noexcept nogil:
    """Whether every receiver gets it, whatever its freq."""
    return (s.flags & (FLOW_TEMPLATE | FLOW_OPTIONS_TEMPLATE)) != 0


cdef inline bint flow_keeps_exporter(const u8 *address, u32 freq) noexcept nogil:
    """freq_mode "exporter": whether this exporter is one of the 1/freq whose datagrams are all sent. Address only, unseeded: the same choice
    for all its ports and domains, on every worker and relay, after every restart."""
    cdef u64 a = hash_wide(address)
    a ^= a >> 32
    return ((a & 0xFFFFFFFFU) * freq) >> 32 == 0
