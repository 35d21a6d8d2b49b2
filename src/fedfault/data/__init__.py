"""From a corpus to what each client holds, and how different the clients are."""
