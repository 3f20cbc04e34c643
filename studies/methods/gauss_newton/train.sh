# The adapters that measure.py reads, one per seed:  [TASK=arc_easy] bash studies/methods/gauss_newton/train.sh SEED...
set -eu
for seed in "$@"; do
    OMP_NUM_THREADS=1 bayeslora train --method BayesianLora --method.last_layers 8 --model.name offline:smollm2 \
        --task.name "${TASK:-arc_easy}" --task.scoring cloze --task.length_power 0.5 --task.train_examples 500 --task.dev_examples 200 \
        --task.test_examples 1000 --train.learning_rate 2e-3 --train.epochs 3 --seed "$seed" --output_dir "runs/${TASK:-seed}-$seed"
done
