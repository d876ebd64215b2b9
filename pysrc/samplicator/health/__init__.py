"""The states of receivers and what they cause: probes, the state of each receiver, fail-over.

May import: config, plan, host, datapath. It must never open a listener or publish a plan.
"""
