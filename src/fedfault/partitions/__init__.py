"""How documents are dealt out to clients, one file each: `fedfault list partition`."""
