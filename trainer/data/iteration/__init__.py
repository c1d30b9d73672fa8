"""How sources are iterated: order, position, prefetch and batches."""
