"""Other libraries' quantized weights: their files, read and written without them, and their live modules as hosts."""
