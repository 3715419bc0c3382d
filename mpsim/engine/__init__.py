"""The two engines and the timeline that they return."""
