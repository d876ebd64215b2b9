# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Copies that were given up, for taps: by where their payload is. Filled by tx/, while somebody asks; read and emptied by worker/tap.pxi after
each selection. Invariant: what does not fit is left out, which can only be copies of another selection.
"""

from base.batch cimport BATCH_LIMIT
from uapi.net cimport msghdr, u8, u32, unlikely

ctypedef struct tx_lost_t:
    u32 n
    u8 reason[BATCH_LIMIT]
    const void *data[BATCH_LIMIT]      # the payload, or a part of it; NULL = it has no bytes


cdef inline void lost_note(tx_lost_t *lost, const void *data, u32 reason) noexcept nogil:
    """Notes a copy. lost: NULL = nobody asks."""
    if unlikely(lost != NULL) and lost.n < BATCH_LIMIT:
        lost.data[lost.n] = data
        lost.reason[lost.n] = <u8>reason
        lost.n += 1


cdef inline void lost_note_message(tx_lost_t *lost, const msghdr *message, bint headers, u32 reason) noexcept nogil:
    """Notes the copies of a message: a run of payloads, or headers and payloads in turn."""
    cdef size_t step = 2 if headers else 1
    cdef size_t k = step - 1
    if message.msg_iovlen < step:
        lost_note(lost, NULL, reason)
    while k < message.msg_iovlen:
        lost_note(lost, message.msg_iov[k].iov_base, reason)
        k += step
