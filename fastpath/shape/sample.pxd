# cython: language_level=3
"""freq: 1-in-N copies of a receiver. The first copy is sent, then freq - 1 are skipped (the order of the original samplicate).

Called by: the worker for each copy of a receiver that samples. The countdown lives with the receiver's counters and so survives a reload.
"""

from base.counters cimport tx_counters_t
from uapi.net cimport u32


cdef inline bint sample_keep(tx_counters_t *c, u32 freq) noexcept nogil:
    """True when this copy is to be sent. freq >= 1; a countdown left from a larger freq is cut down to the new one."""
    if c.countdown == 0:
        c.countdown = freq - 1
        return True
    if c.countdown >= freq:
        c.countdown = freq - 1
        return True
    c.countdown -= 1
    return False
