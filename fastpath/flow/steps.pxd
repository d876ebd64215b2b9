# cython: language_level=3
"""Counts the work of the flow stage, for tests: flow_step(n) is in every loop over stored or received data, and is empty in the released
module. The probe and the fuzz target define FLOW_COUNT_STEPS and hold the steps of a datagram against its bytes.

Called by: all of flow/.
"""

from uapi.net cimport u64

cdef extern from * nogil:
    """
    #ifndef FLOW_STEP
    #ifdef FLOW_COUNT_STEPS
    static unsigned long long flow_steps_taken;
    #define FLOW_STEP(n) ((void)(flow_steps_taken += (n)))
    #define FLOW_STEPS_TAKEN() flow_steps_taken
    #else
    #define FLOW_STEP(n) ((void)0)
    #define FLOW_STEPS_TAKEN() 0
    #endif
    #endif
    """
    void flow_step "FLOW_STEP" (u64 n)
    u64 flow_steps_taken "FLOW_STEPS_TAKEN" ()
