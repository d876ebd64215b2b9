"""Transports other than UDP, which run in the control plane. A door connects them to the datapath.

May import: config, plan.
"""
