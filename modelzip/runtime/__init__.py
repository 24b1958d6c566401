"""One small Session interface over the runtimes that serve a model."""
