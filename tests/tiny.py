"""A whole system small enough for tests: real configuration, real data, tiny sizes."""

import copy
import functools

from hydra import compose, initialize_config_dir

from fastcap.build import CONFIG_DIR

TINY = [
    "data.source.num_train=32",
    "data.source.num_val=16",
    "data.source.num_test=8",
    "data.batch_size=8",
    "data.image_size=32",
    "backbone.dims=[32,32]",
    "backbone.depths=[1,1]",
    "backbone.stem_dims=[16]",
    "backbone.stem_depths=[1,1]",
    "backbone.head_dim=8",
    "backbone.d_state=4",
    "decoder.dim=32",
    "decoder.num_layers=2",
    "decoder.num_experts=2",
    "alignment.embed_dim=32",
    "length.hidden_dim=16",
    "tokenizer.min_frequency=1",
    "optim.optimizer.lr=2e-3",
    "refinement.num_steps=4",  # several; behind the learning rate, as sweeps take keys in this order
    "logger=csv",
    "callbacks.samples.num_images=2",
    "callbacks.refinement.num_images=1",
    "callbacks.speed_quality.max_images=4",
    "~callbacks.progress",
    "~callbacks.summary",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",  # whatever the machine computes
]
# Pictures, the speed/quality curve and Java take longer than the training itself.
QUICK = [
    *TINY,
    "callbacks.samples=null",
    "callbacks.refinement=null",
    "callbacks.speed_quality=null",
    "metrics.tokenizer=simple",
]


def tiny_config(*overrides, base=QUICK):
    """Compose the training configuration at test size; another kind of backbone or refinement stays as it is."""
    keys = [o.split("=")[0] for o in overrides if "spatial_mamba" not in o]
    size = [s for s in base if not (s.startswith(("backbone.", "refinement.")) and s.split(".")[0] in keys)]
    return copy.deepcopy(_composed(*size, *overrides))


@functools.cache
def _composed(*overrides):
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose("train", overrides=list(overrides))
