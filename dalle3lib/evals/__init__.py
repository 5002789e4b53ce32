"""Automatic evaluations of generated images, one module for each of the paper's measures."""
