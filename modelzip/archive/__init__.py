"""The archive: a compressed model as small as it can be stored."""
