"""What a run directory holds: manifests, locks, results."""
