"""Scenarios that run as they are; each opens with a comment that says what it shows."""
