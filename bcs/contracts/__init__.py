"""The wire: what BCS reads from and writes to the systems around it. pydantic stays at this edge."""
