"""Tensor to tensor: masks, grids and rounding, noise, schedules. No nn.Module here."""
