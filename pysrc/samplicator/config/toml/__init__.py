"""The configuration in TOML."""
