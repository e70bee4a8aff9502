"""The demo: several trained networks become one that works, as a table and a picture."""
