"""One module for each group of endpoints; each exports Litestar route handlers."""
