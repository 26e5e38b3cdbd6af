"""HTTP: the fine-tuning API of the contract. Reaches running work only through the store."""
