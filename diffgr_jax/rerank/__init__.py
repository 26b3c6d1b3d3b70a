"""Re-ranking: what its examples, prompts, answers and rewards are."""
