"""Kernels and plain-JAX references: arrays in, arrays out."""
