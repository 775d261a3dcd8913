"""versions.lock: its model, how it is read, and how it is resolved from images/versions.toml."""
