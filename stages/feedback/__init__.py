"""Who says how good an answer is: reward model, labellers, functions, endpoints."""
