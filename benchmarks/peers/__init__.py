"""DistrEE's split of a network over two programs against other ways to ask another program for the rest."""
