"""How raw files are read, format by format: rows, and what is none."""
