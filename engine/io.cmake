# What the engine reads and writes: checkpoints, tokenizers, data sets, adapters.
