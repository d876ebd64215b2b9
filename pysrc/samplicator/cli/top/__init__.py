"""`samplicator top`: the state of a daemon in a terminal, drawn anew while it changes.

`command` begins; `watch` asks the daemon and makes rates, `fetcher` does so in a thread; `pages` says what the tables
show; `screen` makes lines of it; `keys` says what a key does; `terminal` has the terminal, and gives it back.
"""
