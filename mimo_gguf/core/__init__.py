"""Values and formats that every stage shares: units, ggml types, GGUF headers, tensor sources, shelves, errors."""
