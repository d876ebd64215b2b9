"""The commands `samplicator` and `samplicate`: arguments to a call, an exit status, and texts for people.

May import: everything.
"""
