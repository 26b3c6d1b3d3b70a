"""Any corpus in the BEIR shape: corpus.jsonl, queries and relevance judgements in one folder."""
