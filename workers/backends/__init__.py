"""What computes a batch. The only place that imports llama_cpp or torch, and only when one is opened."""
