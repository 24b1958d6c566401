"""Coders of integers: of few kinds, of many zeros, and of weights that look alike nearby."""
