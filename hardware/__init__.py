"""Real torch runs: two-device models, the pipeline runner, micro-benchmarks. The only torch here."""
