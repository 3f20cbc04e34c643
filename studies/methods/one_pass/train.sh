# The adapters that measure.py reads:  bash studies/methods/one_pass/train.sh TASK SEED...    (as ../gauss_newton/train.sh)
set -eu
task=$1
shift
for seed in "$@"; do
    OMP_NUM_THREADS=1 bayeslora train --method BayesianLora --method.last_layers 8 --model.name offline:smollm2 \
        --task.name "$task" --task.scoring cloze --task.length_power 0.5 --task.train_examples 500 --task.dev_examples 200 \
        --task.test_examples 1000 --train.learning_rate 2e-3 --train.epochs 3 --seed "$seed" --output_dir "runs/$task-$seed"
done
