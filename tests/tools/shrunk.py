"""Baselines small enough for tests: settings of their parts beyond the published ones."""

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 32, "patch_size": 16}
SHRUNK = {
    "git-base": {"text": {**LAYERS, "vocab_size": 200}, "vision": VISION},
    "blip-base": {
        "text": {**LAYERS, "vocab_size": 200, "encoder_hidden_size": 32, "bos_token_id": 3, "sep_token_id": 2},
        "vision": VISION,
    },
    "vit-gpt2": {
        "text": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200, "bos_token_id": 3, "eos_token_id": 3},
        "vision": VISION,
    },
}
