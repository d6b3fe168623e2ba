"""Teaching a backbone to see before it captions: distillation from a packaged encoder, or ImageNet-style classes."""
