"""Size, latency, accuracy and parity of what is deployed."""
