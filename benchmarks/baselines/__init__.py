"""Plain implementations of what is measured: the method without any of its optimisations."""
