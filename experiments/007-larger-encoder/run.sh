#!/usr/bin/env bash
# Study 007, from a fresh clone after `make setup`: about an hour and a half on two quiet cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python
runs=runs/007
common="experiment=flickr8k recipe=none backbone=efficientnet_lite2 data.image_size=288 data.feature_views=3"
twin="decoder=autoregressive refinement=greedy"

$python -m fastcap.train $common $twin trainer.max_epochs=12 trainer.check_val_every_n_epoch=3 hydra.run.dir=$runs/twin
$python -m fastcap.train $common $twin objective=reinforced init.captioner=$runs/twin/checkpoints/best.ckpt \
    optim.optimizer.lr=1e-4 trainer.max_epochs=1 hydra.run.dir=$runs/twin_rewarded
$python -m fastcap.eval ckpt=$runs/twin_rewarded/checkpoints/best.ckpt split=train refinement.num_beams=3 hydra.run.dir=$runs/taught
taught="data.taught=[$runs/taught/captions_train_fastcap_results.json]"
$python -m fastcap.train $common init.captioner=$runs/twin_rewarded/checkpoints/best.ckpt "$taught" trainer.max_epochs=4 \
    hydra.run.dir=$runs/taught_refinement
$python -m fastcap.train $common objective=reinforced "$taught" refinement.num_steps=2 \
    init.captioner=$runs/taught_refinement/checkpoints/best.ckpt optim.optimizer.lr=1e-4 trainer.max_epochs=1 \
    hydra.run.dir=$runs/reinforced
