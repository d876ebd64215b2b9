"""Access to this host and its kernel: sockets, routes, neighbors, interfaces, names, files, processes.

Plain functions and small watchers; no knowledge of what runs. May import: config, plan.
"""
