"""Layers as products of smaller ones: `plan` is the way in."""
