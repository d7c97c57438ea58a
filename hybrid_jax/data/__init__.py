"""From text to batches: tokenizer training, token shards, packing and the grain pipeline."""
