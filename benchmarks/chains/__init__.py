"""What benchmarks.chain compresses: a teacher, its data, and how it is pruned, distilled and trained in integers."""
