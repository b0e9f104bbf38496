"""How is a model exported: formats, the gate that each must pass, and the bundle."""
