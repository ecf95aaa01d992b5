"""Guardrails: what prompts and answers may say. Matching is pure and sees text only; `inspector.py` judges prompts."""
