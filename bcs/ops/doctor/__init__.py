"""The checks of `bcs doctor`. The modules that judge are pure; other modules ask the servers."""
