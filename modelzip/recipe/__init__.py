"""Recipe files: the only place with YAML and pydantic."""
