"""`samplicator tap`: datagrams as they come in and leave, as lines or as a pcapng file.

`command` begins; `events` reads what the daemon sends; `decode` finds the `facts` of a payload, with the templates
that `memory` keeps; `lines` writes it for people; `pcapng` and `packets` write it for Wireshark.
"""
