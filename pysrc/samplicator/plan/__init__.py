"""From the configuration to what shall run: a plan of plain data, and the reasons for each choice.

Pure: no socket, no clock, no question to the host; the caller passes what the host can do (Capabilities). May import:
config.
"""
