"""The `mmbm` command: one file a subcommand."""
