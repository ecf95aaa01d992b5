"""The engine: sequences, scheduler, page pool and the thread that steps them. Knows no broker."""
