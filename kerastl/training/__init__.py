"""How are the two phases trained?"""
