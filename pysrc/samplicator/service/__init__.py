"""The process: starts, reloads, reports to the service manager, and stops.

May import: http and everything below.
"""
