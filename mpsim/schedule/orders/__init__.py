"""Compute-only pipeline orders, one function each."""
