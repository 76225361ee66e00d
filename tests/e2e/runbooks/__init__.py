"""The runbooks of docs/runbooks, played: `python -m tests.e2e.runbooks [NAME …]` writes what was seen into them."""
