"""How does a model leave: formats, the gate that each must pass, and the sealed bundle."""
