"""Where do images and labels come from?"""
