"""The contract of every open folder, and the small tasks and histories that it is checked on."""
