"""Smaller and faster models: pruning to smaller modules, integer arithmetic, distillation from the original."""
