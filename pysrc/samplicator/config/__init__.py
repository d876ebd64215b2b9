"""The configuration: the model, its two readers (TOML and rule file), and its checks. Uses no sockets and no
asyncio."""
