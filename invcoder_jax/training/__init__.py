"""Supervised finetuning: data, loss, optimizer, one step, and the resumable loop around it."""
