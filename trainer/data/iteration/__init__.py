"""How sources are iterated: order, position, prefetching and batches."""
