"""The operators' commands, one module for each. `bcs.cli` loads a module when its command is asked for."""
