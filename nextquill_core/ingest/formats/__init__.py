"""Readers of file formats: each converts raw files into batches of canonical rows. They know no source."""
