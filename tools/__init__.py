"""Workshop programs, run as `python -m tools.NAME`: they look at what a run would do, and train nothing."""
