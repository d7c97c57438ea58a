"""The paper's claim about long text, in small: two models extended by YaRN and by DRoPE, and what they then can do."""
