"""What the notebooks study. It imports the core; the core never imports it."""
