"""How good is a classifier, what does it say, and what did it look at?"""
