"""The handles of the compiled datapath, paired with the sockets they live on, so that nothing is closed too early or
forgotten.

A function here either returns a whole object or raises and has closed what it opened. May import: config, plan, host.
It must never decide what runs, and never publish a plan.
"""
