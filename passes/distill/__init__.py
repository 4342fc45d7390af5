"""Distillation: a student Program learns to give what its teacher gives."""
