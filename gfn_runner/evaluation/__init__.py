"""Draw samples of a policy, compute metrics of them."""
