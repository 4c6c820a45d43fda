"""Trains small Vision Transformers without labels, on digits or on a folder of photos."""
