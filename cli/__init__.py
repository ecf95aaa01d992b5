"""`inferctl`: serving, asking and operating from a terminal. May import every other room, lazily."""
