"""SCTP: associations in and out, with a primary and a backup collector, over the kernel's SCTP or libusrsctp.

May import: config, plan. Only the transport is here: what messages mean is not known.
"""
