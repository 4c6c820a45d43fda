"""Reports of runs: pages, pictures and tables."""
