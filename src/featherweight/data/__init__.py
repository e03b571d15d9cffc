"""Files become rows with line numbers, rows become examples, examples become encoded items, items become batches."""
