"""Training: supervised runs with exact resume, schedules, previews, and the record of a run."""
