"""Numbers from a timeline, where the time goes, and their renderers."""
