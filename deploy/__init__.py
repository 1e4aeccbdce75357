"""How people run MMBM: the `mmbm` command."""
