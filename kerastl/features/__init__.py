"""How is the frozen part run once: where a model is cut, what that costs and saves, who runs it, and what is kept."""
