"""`tidegate weights`, `canary` and `experiment`: which versions answer, and what is known of them."""
