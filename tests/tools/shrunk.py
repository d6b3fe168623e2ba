"""Baselines small enough for tests: settings of their parts beyond the published ones."""

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": 32, "patch_size": 16}
BOTH = ("encoder", "decoder")
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
    "florence-2-base": {
        "text": {
            "d_model": 32,
            **{f"{part}_layers": 1 for part in BOTH},
            **{f"{part}_attention_heads": 2 for part in BOTH},
            **{f"{part}_ffn_dim": 64 for part in BOTH},
            "vocab_size": 200,
        },
        "vision": {
            **{"projection_dim": 32, "embed_dim": [16, 32], "depths": [1, 1], "num_heads": [2, 2]},
            **{"num_groups": [2, 2], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]},
            **{"patch_prenorm": [False, True], "window_size": 4},
        },
    },
    "smolvlm-256m": {
        "text": {**LAYERS, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 200, "eos_token_id": 199},
        "vision": {**LAYERS, "image_size": 64, "patch_size": 16},
    },
}
SIZES = {name: parts["vision"].get("image_size", 64) for name, parts in SHRUNK.items()}
