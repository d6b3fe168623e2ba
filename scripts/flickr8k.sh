#!/usr/bin/env bash
# From photographs to the captioner of experiments/021-both-experts, with its scores: about 100 minutes on two cores with
# AMX, and 15 GB for the cached features of four views of 6,000 images.
#
#   scripts/flickr8k.sh [OVERRIDE ...]        OVERRIDEs reach every training: backbone=efficientnet_lite0 trainer.max_epochs=1
#   RUN=DIR scripts/flickr8k.sh               another folder than runs/flickr8k/pipeline
#   EXPERIMENT=coco_base scripts/flickr8k.sh  another data set and model
#
# The same command again skips the stages that are finished and goes on with the one that stopped; other overrides need
# another RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
RUN=${RUN:-runs/flickr8k/pipeline}
EXPERIMENT=${EXPERIMENT:-flickr8k}
overrides=(resume=last "$@") # never empty: old bashes call that unbound

# Run a command of fastcap, unless it has left its results.
unless_done() { # STAGE COMMAND ...
  echo "== $1: fastcap ${*:2}"
  if [ -e "$RUN/$1/results.json" ]; then echo "   finished before"; else python -m fastcap.cli "${@:2}"; fi
}
train() { # STAGE OVERRIDE ...: conf/stage/STAGE.yaml
  unless_done "$1" train "experiment=$EXPERIMENT" "stage=$1" "${@:2}" "${overrides[@]}" "hydra.run.dir=$RUN/$1"
}
score() { # NAME CHECKPOINT OVERRIDE ...
  unless_done "$1" eval "ckpt=$2" "${@:3}" "hydra.run.dir=$RUN/$1"
}
best() { echo "$RUN/$1/checkpoints/best.ckpt"; }
captions=$RUN/captions/captions_train_fastcap_results.json

# 1. Which words and phrases does the image call for?
train concepts
# 2. An autoregressive teacher, from those weights.
train teacher "init.captioner=$RUN/concepts/checkpoints/last.ckpt"
# 3. Its captions of the training images: of five beams the one with the most expected concept matches.
score captions "$(best teacher)" split=train refinement.num_beams=5 refinement.guidance.rerank_weight=1.5 refinement.guidance.word_penalty=0.7
# 4. The student, on people's captions and the teacher's.
train student "init.captioner=$(best teacher)" "data.distilled_captions=[$captions]"
# 5. Rewards.
train scst "init.captioner=$(best student)" "data.distilled_captions=[$captions]"

# 6. Scores on the validation images: the teacher's, and the student's by steps x lengths; then decoding times.
score teacher_greedy "$(best teacher)"
score teacher_beam3 "$(best teacher)" refinement.num_beams=3
for setting in 1x1 1x2 1x3 1x4 1x5 2x4 4x4 8x4; do
  score "scst_$setting" "$(best scst)" "refinement.num_steps=${setting%x*}" "refinement.length_beam=${setting#*x}"
done
[ -e "$RUN/decoding/decoding.json" ] || python -m fastcap.cli bench decoding --models "$(best scst)" "$(best teacher)" \
  --refinements 1x1 1x2 1x3 1x4 1x5 2x4 4x4 8x4 --max-images 40 --rounds 2 --out "$RUN/decoding"
echo "Checkpoint  $(best scst)"
