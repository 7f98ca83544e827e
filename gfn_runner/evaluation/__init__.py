"""Draw samples of a policy and measure them."""
