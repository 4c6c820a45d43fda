"""XLA's emitters as users have them, for tests that depend on them. `conftest.py` has others."""

import jaxlib.version

FUSION_EMITTERS = (
    {"xla_cpu_use_fusion_emitters": True} if jaxlib.version.__version_info__ < (0, 11) else {}
)
"""Options of a compilation."""
