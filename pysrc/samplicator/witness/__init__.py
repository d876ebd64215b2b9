"""The witness at a collector: what arrives on the wire, what its sockets drop, and the relay's side, in one balance.

Called by cli. It reads packets and counters and asks the relay's API; it must never send to the collector's port, bind
it, or change anything of this host. It needs CAP_NET_RAW and nothing else.
"""
