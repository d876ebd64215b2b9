"""What the operator wrote: the model, its two readers (TOML and rule file), its checks. No sockets, no asyncio here."""
