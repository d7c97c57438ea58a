"""Every tolerance the tests compare with, and why it is what it is.

Errors are relative to the reference as a whole, ||x - reference|| / ||reference||, unless said otherwise.
"""

# Float32 rounds by 6e-8; sums over a chunk and a state carried through a few of them reach some multiples of it.
FLOAT32_FORWARD = 2e-6
# A gradient passes through twice as many sums, and that of the log decay adds up terms of both signs.
FLOAT32_GRADIENT = 1e-5
# Inputs rounded to bf16 in the reference too: what is left is the output's rounding of 2^-9.
BFLOAT16 = 1e-2
# Inputs on which the rule itself amplifies rounding: a form may do so ten times as much as the float32 recurrence.
HARD_INPUT_FACTOR = 10
# The error below which that factor means nothing: the recurrence can be right to the last bit by luck.
FLOAT32_ROUNDING = 2.0**-23
# The same float32 numbers in another order of summation: documents packed or alone, a row batched or alone.
FLOAT32_REORDERED = 1e-5
# The same compiled arithmetic, differently scheduled: jit, remat, vmap.
FLOAT32_RESCHEDULED = 1e-6
# Two float64 computations of one thing.
FLOAT64 = 1e-12
# Logits beside those of another implementation, root mean square in standard deviations. On the random models of the
# tests, transformers' own float32 logits are 4e-6 from float64 (and 5e-5 at the worst of 40,000): norms of small
# outputs of the recurrence amplify rounding.
FLOAT32_PARITY = 2e-5
FLOAT32_PARITY_GRADIENT = 1e-4
# Loss and parameters after five steps on a mesh, against one device.
FLOAT32_RESHARDED = 1e-5
# The GPU kernels: states, errors and products rounded to bf16 between matrix products that add up in float32.
KERNEL_FORWARD = 5e-3
KERNEL_GRADIENT = 1e-2
# Repeated keys written with beta near 2: each token's rounding of 2^-9 is written back nearly twice by the next.
KERNEL_REPEATED = 4e-2
KERNEL_REPEATED_GRADIENT = 1e-1
# The norm of what is 0 in the reference.
KERNEL_OF_NOTHING = 1e-6
# Log-likelihoods of tasks beside those of lm-eval's backend for transformers, in nats, summed over a continuation.
LM_EVAL_LOG_LIKELIHOOD = 1e-4
