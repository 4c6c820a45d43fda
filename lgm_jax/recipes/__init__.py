"""The program and its recipes, as links to `launch.py` and `configs/`: a wheel carries copies.

Not to be imported: `python -m lgm_jax` runs what lies here.
"""
