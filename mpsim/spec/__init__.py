"""What the user declares: frozen models of a scenario, with units, docs and checks."""
