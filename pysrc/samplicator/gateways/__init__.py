"""Gateways: transports that are no UDP and live in the control plane, a file each. Doors lead from them to the workers."""
