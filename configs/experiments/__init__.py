"""Experiments of the paper, and beyond it: `python launch.py --config=configs/experiments/...`."""
