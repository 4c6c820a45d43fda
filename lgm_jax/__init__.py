"""Dataset distillation for frozen, pre-trained vision models."""

from lgm_jax.distilled import load_distilled

__all__ = ["__version__", "load_distilled"]
__version__ = "0.2.0.dev0"
