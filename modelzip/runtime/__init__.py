"""One small interface, `Session`, over the runtimes that serve a model."""
