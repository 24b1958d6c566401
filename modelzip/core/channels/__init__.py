"""Removing whole channels from a model: what hangs together, what it costs, what is proven."""
