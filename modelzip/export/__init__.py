"""A converted module becomes an ONNX file."""
