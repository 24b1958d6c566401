"""Integer networks: where quantizers go, what they learn, and the arithmetic that is deployed."""
