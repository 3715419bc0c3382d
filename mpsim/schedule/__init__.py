"""Which ops run on which stream in which order: orders, lowering, the graph."""
