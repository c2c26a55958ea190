"""Pure functions on tensors: E-step, M-step, returns, Gaussian closed forms. No state, no networks."""
