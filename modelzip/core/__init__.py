"""What a pass is, and how passes are applied to a model."""
