"""What runs, in which order: the stages of dvc.yaml, one module each, and the `bagger` command."""
