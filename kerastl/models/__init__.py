"""Which network is it, with which weights, and what of it is trainable?"""
