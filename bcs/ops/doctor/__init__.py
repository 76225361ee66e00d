"""What `bcs doctor` looks at. Judging is pure and apart from asking."""
