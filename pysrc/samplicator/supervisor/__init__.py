"""Changes what runs while datagrams flow: builds the next state, publishes it, takes the old one down.

May import: everything below (config, plan, host, gateways, datapath, health). It must never be imported by them.
"""
