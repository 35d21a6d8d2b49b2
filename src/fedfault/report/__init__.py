"""From a run folder to one self-contained HTML page. Reads plain numbers and text; works without torch."""
