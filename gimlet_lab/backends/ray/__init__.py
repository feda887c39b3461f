"""Plans in force on a Ray cluster."""
