"""What to run: the schema of every option, its checks, and one YAML recipe per run."""
