"""What-ifs, search, capacity, launchers and executors."""
