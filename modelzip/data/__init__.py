"""Data sources and batches."""
