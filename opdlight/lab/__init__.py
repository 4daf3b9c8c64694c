"""Studies that anyone can rerun: each is `python -m opdlight.lab.<name>`."""
