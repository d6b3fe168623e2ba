"""Baselines small enough for tests: settings beyond the published ones."""

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 32, "patch_size": 16}
SHRUNK = {
    "git-base": {**LAYERS, "vocab_size": 200, "vision_config": VISION},
    "blip-base": {
        "text_config": {**LAYERS, "vocab_size": 200, "encoder_hidden_size": 32, "bos_token_id": 3, "sep_token_id": 2},
        "vision_config": VISION,
    },
    "vit-gpt2": {
        "decoder": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 200, "bos_token_id": 3, "eos_token_id": 3},
        "encoder": VISION,
    },
}
