"""Recipes: one small file per command that a user would type."""
