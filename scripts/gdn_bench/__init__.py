"""What `scripts/bench_gdn.py` does; imports only jax, numpy and pallas_kernels: GPU machines have little else."""
