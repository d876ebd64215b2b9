"""What is shown: computed once, for command line, pages, metrics and API.

Reads what runs and changes nothing. May import: supervisor and everything below.
"""
