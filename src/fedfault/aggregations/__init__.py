"""How LoRA adapters become one, one file each: `fedfault list aggregation`."""
