"""NQ320K: the pages of Natural Questions, and the questions they answer."""
