"""An engine's own code on tensors without memory: what it would allocate on a card, and when it would let go.

Tensors live on the meta device, where they have a shape and no bytes, and present themselves as CUDA tensors
(`stand_in`). Nothing is computed, so that a forward takes milliseconds per layer whatever the model's size.
"""
