"""Feature extraction: where a model is cut, what it will cost and save, who runs the trunk, and what is kept."""
