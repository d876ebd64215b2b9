"""The HTTP server: the API, the metrics, the pages, on TCP and on the control socket.

Formats what views compute. May import: views and everything below.
"""
