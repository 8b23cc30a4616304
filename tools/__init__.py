"""Secondary commands; they stand where the scripts stand and may import everything."""
