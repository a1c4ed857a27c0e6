"""What is read and written: safetensors, GGUF, tokenizers, templates, adapters."""
