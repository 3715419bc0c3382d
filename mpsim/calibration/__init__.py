"""Measurement tables, fits, intervals and profiles."""
