"""The model of the configuration, a file per table: what every key means, its range and its default.

Pydantic models that TOML files and `samplicate` command lines both end in. Frozen, unknown keys forbidden, types
strict; a model checks what can be judged inside one table, config.validate what needs the whole file. Everybody after
the loaders reads these models. Never imports socket or asyncio, never touches the file system.
"""
