"""The handles of the compiled datapath, together with their sockets, so that no socket is closed too early or
forgotten.

A function here either returns a whole object or raises and has closed what it opened. May import: config, plan, host.
It must never decide what runs, and never publish a plan.
"""
