"""From what the operator wrote to what is to run: a plan of plain data, and the reasons for what was chosen.

Pure: no socket, no clock, no look at the host; what the host can do is handed in (Capabilities). May import: config.
"""
