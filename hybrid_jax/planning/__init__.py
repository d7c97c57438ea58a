"""What a training run will need, from its compiled step, with none of its GPUs present."""
