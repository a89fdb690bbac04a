"""Models by name, path or URI: a registry, imports, the cache."""
