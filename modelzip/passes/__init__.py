"""The built-in passes, one file each; found through the entry-point group modelzip.passes."""
