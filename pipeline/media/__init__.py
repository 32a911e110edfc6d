"""Videos, files, arrays and the cache."""
