"""Gateways: transports that are no UDP and live in the control plane. Each has a file; doors lead from it to the workers."""
