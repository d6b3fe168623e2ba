#!/usr/bin/env bash
# From photographs to the captioner of experiments/029-recipe, with its scores: about 70 minutes on two cores with
# AVX-512-BF16, and 3 GB for the cached features of two views of 9,600 photographs.
#
#   scripts/recipe.sh [OVERRIDE ...]         OVERRIDEs reach every training: data=flickr8k trainer.max_epochs=1
#   RUN=DIR scripts/recipe.sh                another folder than runs/photographs/pipeline
#   EXPERIMENT=coco_base scripts/recipe.sh   another data set and model
#
# Two processes of one thread: trainer.devices=2 trainer.strategy=ddp data.batch_size=32.
# The same command again skips the stages that are finished and goes on with the one that stopped; other overrides need
# another RUN.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
EXPERIMENT=${EXPERIMENT:-photographs}
RUN=${RUN:-runs/$EXPERIMENT/pipeline}
overrides=(resume=last "$@") # never empty: old bashes call that unbound

# Run a command of fastcap, unless it has left its results.
unless_done() { # STAGE COMMAND ...
  echo "== $1: fastcap ${*:2}"
  if [ -e "$RUN/$1/results.json" ]; then echo "   finished before"; else python -m fastcap.cli "${@:2}"; fi
}
train() { # STAGE OVERRIDE ...: conf/stage/STAGE.yaml
  unless_done "$1" train "experiment=$EXPERIMENT" "stage=$1" "${@:2}" "${overrides[@]}" "hydra.run.dir=$RUN/$1"
}
score() { # NAME STAGE OVERRIDE ...: its best checkpoint
  unless_done "$1" eval "ckpt=$RUN/$2/checkpoints/best.ckpt" "${@:3}" "hydra.run.dir=$RUN/$1"
}

# 1. Which words and phrases does the image call for?
train concepts
# 2. An autoregressive teacher, from those weights.
train teacher "init.captioner=$RUN/concepts/checkpoints/last.ckpt"
# 3. Its captions of the training images: of ten beams the one with the highest expected CIDEr-D.
score captions teacher split=train refinement.num_beams=10
# 4. The student, on people's captions and the teacher's.
train student "init.captioner=$RUN/teacher/checkpoints/best.ckpt" \
  "data.distilled_captions=[$RUN/captions/captions_train_fastcap_results.json]"

# 5. Scores on the validation images: the teacher's by beams, the student's by steps and lengths.
for beams in 1 3 10; do score "teacher_$beams" teacher "refinement.num_beams=$beams"; done
for setting in 1x1 1x3 1x5 2x3 4x3; do
  score "student_$setting" student "refinement.num_steps=${setting%x*}" "refinement.length_beam=${setting#*x}"
done
echo "Checkpoint  $RUN/student/checkpoints/best.ckpt"
