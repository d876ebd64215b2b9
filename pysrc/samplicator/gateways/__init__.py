"""Transports that are not UDP and therefore live in the control plane. They meet the datapath at a door.

May import: config, plan.
"""
