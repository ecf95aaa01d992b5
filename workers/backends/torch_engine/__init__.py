"""The torch engine behind the backend seam: models, paged KV, attention and sampling. Only here torch is imported."""
