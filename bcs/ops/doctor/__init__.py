"""The checks of `bcs doctor`. The modules `*_checks` query the servers; the modules `*_findings` are pure."""
