"""What a model costs and whether it still does its job, measured on the deployed file."""
