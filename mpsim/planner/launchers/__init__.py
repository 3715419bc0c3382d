"""Launchers: scenarios written as their flags and configurations, and read back from them."""
