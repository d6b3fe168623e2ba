#!/usr/bin/env bash
# The whole of study 003, from a fresh clone after `make setup`: about an hour and a half on two quiet cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python
runs=runs/003

# 1. The rival, and teacher: the same decoder, word after word.
$python -m fastcap.train experiment=flickr8k decoder=autoregressive refinement=greedy trainer.max_epochs=14 \
    hydra.run.dir=$runs/twin
$python -m fastcap.eval ckpt=$runs/twin/checkpoints/best.ckpt hydra.run.dir=$runs/twin_greedy
$python -m fastcap.eval ckpt=$runs/twin/checkpoints/best.ckpt refinement.num_beams=3 hydra.run.dir=$runs/twin_beam

# 2. Its captions of the training images.
$python -m fastcap.eval ckpt=$runs/twin/checkpoints/best.ckpt split=train refinement.num_beams=3 hydra.run.dir=$runs/taught
taught="data.taught=[$runs/taught/captions_train_fastcap_results.json]"

# 3. Refinement: from the twin's weights, half of the captions the teacher's.
$python -m fastcap.train experiment=flickr8k init.captioner=$runs/twin/checkpoints/best.ckpt "$taught" \
    trainer.max_epochs=12 hydra.run.dir=$runs/taught_refinement

# 4. Rewarded by CIDEr-D, sampled through the very refinement that is shipped, two steps.
$python -m fastcap.train experiment=flickr8k objective=reinforced "$taught" refinement.num_steps=2 \
    init.captioner=$runs/taught_refinement/checkpoints/best.ckpt optim.optimizer.lr=1e-4 \
    trainer.max_epochs=5 trainer.check_val_every_n_epoch=1 hydra.run.dir=$runs/reinforced

# 5. Steps against quality, and against time.
for run in taught_refinement reinforced; do
    for steps in 1 2 3 4 8; do
        $python -m fastcap.eval ckpt=$runs/$run/checkpoints/best.ckpt refinement.num_steps=$steps \
            hydra.run.dir=$runs/${run}_$steps
    done
done
$python -m fastcap.bench decoding --models $runs/reinforced/checkpoints/best.ckpt $runs/twin/checkpoints/best.ckpt \
    --images "${FASTCAP_FLICKR8K:-../shared/data/flickr8k}/images" --out $runs/decoding
