"""Changes what runs while datagrams flow: builds the next state, publishes it, and closes the old one.

May import: everything below (config, plan, host, gateways, datapath, health). It must never be imported by them.
"""
