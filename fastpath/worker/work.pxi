# needs: uapi: net; flow: alias; route: plan; rx: socket; tx: engine, shared
# What one worker does under a plan: its routing, the intakes and ways that the plan names, and the scratch space of a batch. Made by
# handles/plan.pxi, which owns the memory; used by one worker at a time.

ctypedef struct work_t:                # what one worker does: routing, and the ways in and out it names
    plan_t routing
    rx_socket_t **sockets
    u32 socket_count
    tx_t **ways
    u32 *owner                         # index in the caller's list of Tx, for each way (a fallback has its owner's)
    u16 *selections                    # BATCH_LIMIT datagram indexes a way
    u32 *selected                      # how many of them, 0 outside a batch
    u32 *active                        # ways with selected > 0 in this batch
    u32 *ported                        # of these, those that leave by the exporters' ports (engine transparent)
    u32 *framed                        # of these, those that leave by the packet socket
    shared_t shared                    # what these two leave to the receivers' own sockets
    u32 *numbers                       # BATCH_LIMIT a way: sequence numbers to write into the copies ...
    u8 *numbered                       # ... where this is 1
    u32 *rewrites                      # how many, 0 outside a batch
    u32 *replay_to                     # ways that are told the templates of exporters new to them when the plan is adopted
    u32 replay_to_count
    bint unread                        # UDP sockets that leave with this plan are not read out: another process does that
    bint turns                         # some pool is balanced by round-robin
    aliases_t *aliases                 # NULL = no receiver needs any
