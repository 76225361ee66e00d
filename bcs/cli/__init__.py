"""The operators' commands, one module for each. `bcs.cli.main` loads a module when its command is asked for."""
