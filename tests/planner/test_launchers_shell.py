"""Shell scripts as bash reads them, and Megatron-LM's scripts of any shape as scenarios."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsim.errors import ScenarioError
from mpsim.planner.launchers.shell import read_script
from mpsim.planner.launchers.shell_arithmetic import evaluate
from mpsim.planner.launchers.shell_conditions import judge
from mpsim.planner.launchers.translate import import_text


def words_of_bash(script):
    """The words of each call of ``run``, as bash itself makes them."""
    prelude = 'set -u; run() { [ $# = 0 ] || printf "%s\\0" "$@"; printf "\\1\\0"; }\n'
    done = subprocess.run(
        ["bash", "--norc", "-c", prelude + script], capture_output=True, text=True, check=True
    )
    calls = [[]]
    for word in done.stdout.split("\0")[:-1]:
        if word == "\1":
            calls.append([])
        else:
            calls[-1].append(word)
    return calls[:-1]


def words(script):
    """The words of each call of ``run``, as mpsim reads them."""
    commands = read_script(script).commands
    return [command.words[1:] for command in commands if command.words[0] == "run"]


@pytest.mark.parametrize(
    "script",
    [
        "run --x 4 --y=2",
        "A=(--x 4 --y)\nrun ${A[@]}",
        'A=(--x 4 \\\n --y # a comment\n --z#no-comment\n)\nrun "${A[@]}" --w',
        'A=( --x \'two words\' )\nrun ${A[@]}\nrun "${A[@]}"\nrun "<${A[@]}>"',
        "A=(--x)\nA+=(--y 2)\nrun ${A[*]} $A ${A}",
        'A=(1 2)\nB=(0 ${A[@]} 3)\nrun "${B[@]}"',
        'P=(--a 4 --b)\nO="${P[*]} --c"\nrun $O "$O"',
        'P=(--a 4 --b)\nO="${P[@]} --c" Q=${P[@]} R=${P[*]}\nrun "$O" "$Q" "$R"',
        'P=(--a 4)\nQ=(--b)\nO="${P[*]} ${Q[@]}"\nO+="${P[*]}"\nrun "$O"',
        'P=(--a 4)\nrun "x ${P[*]} y" "x ${P[@]} y" ${P[*]} "${P[*]}"',
        'P=()\nO="${P[*]} --c"\nrun "$O" "${P[*]}" ${P[*]}',
        'P=(--a 4)\nB=("${P[*]}" "${P[@]}" "${P[*]:-x}")\nrun "${B[@]}"',
        'S="--x 4 \\\n --y 3"\nrun $S "$S"',
        "S='--x $A'\nrun $S",
        "S=--x\nS+=' 4'\nS=\"$S --y\"\nrun $S",
        "N=8\nM=$((N*4)) K=$(($N / 3 + (7 - 2) % 3)) L=$((-N/3))\nrun $N ${M} $K $L a${N}b",
        'run ${X:-8} ${X-9} "${X:=a b}" ${X:+set}',
        "X=\nrun ${X:-1} ${X-2} a$X ${X:+3} ${X+4}\nY=5\nrun ${Y:-1} ${Y:+6}",
        "run ${X:-${Y:-${Z:-3}}}",
        'run \'a\'"b"c\\ d \\$x "\\$y" "a\\b"',
        "export A=3 B=4\nrun $A $B",
        "OMP=1 run --x",
        "run --x 2>/dev/null 1 2>&1 <<< word | cat",
        "run a; run b && run c\nrun d &",
        "cat > /dev/null <<EOF\nrun 'not --this\nEOF\nrun --that",
        "# don't\nrun a # isn't\nrun a#b",
        'run "" \'\' x\nE=\nrun $E "$E"',
        "if true; then T=8; fi\nrun $T",
        "M=7B\nif [ $M = 7B ]; then L=1; elif [ $M = 13B ]; then L=2; else L=3; fi\nrun $L",
        "M=13B\nif [[ $M == 7B ]]; then L=1; elif [[ $M == 13B ]]; then L=2; fi\nrun $L",
        "M=70B\nif [ $M = 7B ]; then\n L=1\nelif [ $M = 13B ]; then L=2\nelse\n L=3\nfi\nrun $L",
        'A=1 B=\nif [ $A -gt 0 ] && [ -n "$B" ]; then run x; else run y; fi',
        'A=1 B=\nif [ $A -ge 2 ] || [ -z "$B" ]; then run x; else run y; fi',
        "A=1\n[ $A = 2 ] && B=3 || B=4\n[ $A = 1 ] && C=3 || C=4\nrun $B $C",
        "A=1\n[ ! $A -ne 1 ] && run a\n! [ $A = 1 ] && run b\n[ $A -lt 1 ] || run c; run d",
        "if [ 1 = 2 ]; then if [ 1 = 1 ]; then run a; else run b; fi; run c; else run d; fi; run e",
        "if [ 1 = 2 ]; then for i in 1; do X=1; done; fi\nrun ${X:-2}",
        "[ 1 = 2 ]; A=1 && B=2\nrun $A $B",
        "P='  --x  1  '\nrun a$P\"b\"",
        "for i in 1; do run x; done\nwhile false; do :; done",
        "run a\tb  \\\n   c",
        "T=4\n((T*=2))\n((T = T + 1))\nrun $T\n((T == 3)) || run $T\nlet T=T*2 T+=1\nrun $T",
        "T=4\n(T=8; run $T)\nrun $T\nf() { local T=2; }\nf",
        "T=4\nT=8 run $T\nrun $T\nU=1 run a\nrun ${U:-2}",
        "T=4\nunset T\nrun ${T:-1} ${T-2}",
    ],
)
def test_words_are_those_of_bash(script):
    assert words(script) == words_of_bash(script)


PIECES = ["--x", "4", " ", "  ", '"', "'", "$N", "${N}", "${A[@]}", '"${A[@]}"', "#", "\\\n"]
PIECES += ["\n", "=", "${N:-2}", "$((N+1))", "\\$", "a", "\t", '"$S"', "$S", ";", "run "]


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=8))
def test_words_of_any_pieces_are_those_of_bash(pieces):
    script = "N=8\nS='p q'\nA=(1 's t')\nrun " + "".join(pieces)
    try:
        mine = words(script)
    except ScenarioError:
        mine = None
    try:
        theirs = words_of_bash(script)
    except subprocess.CalledProcessError:
        return  # a syntax error, or a word that is no command
    assert mine == theirs


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8*4", 32),
        ("-7 / 2", -3),
        ("-7 % 2", -1),
        ("(1 + 2) * N", 24),
        ("1 / 0", None),
        ("2 ** 9 ** 9 ** 9", None),
        ("$1 * 2", None),
        ("M + 1", None),
        ("N > 2 ? 1 : 0", None),
        ("1.5", None),
        ("4if 1else 2", None),
        ("lambda", None),
        ("0x10", None),
        ("", None),
        ("(" * 150, None),
        ("1+" * 200 + "1", None),
    ],
)
def test_arithmetic_is_of_whole_numbers_or_left_alone(text, value):
    assert evaluate(text, {"N": "8", "M": ""}.__getitem__) == value


def test_what_cannot_be_known_stays_as_it_is_written():
    script = 'P=$1\nH=$(hostname -f | cut -d. -f1)\nrun $P "$H" `date` ${X##*/} ${Q:?none} $Z'
    assert words(script) == [
        ["$1", "$(hostname -f | cut -d. -f1)", "`date`", "${X##*/}", "${Q:?none}", "$Z"]
    ]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("A=(\n--x 4\n", r"line 1: the \( that stands there is not closed"),
        ("\nrun --x 'a\n", "line 2: the ' that stands there is not closed"),
        ('run --x "a\n', 'line 1: the " that stands there is not closed'),
        ("run ${X\n", "line 1: the { that stands there is not closed"),
        ("A=aaaaaaaaaa\n" + "A=$A$A\n" * 40, "A: grows without end"),
        ("A=('' '')\n" + 'A+=("${A[@]}")\n' * 40, "A: grows without end"),
    ],
)
def test_what_does_not_end_is_refused(script, message):
    with pytest.raises(ScenarioError, match=message):
        read_script(script)


MODEL = """
--num-layers 12 --hidden-size 64 --num-attention-heads 4 --seq-length 128
--max-position-embeddings 128 --micro-batch-size 1 --vocab-size 1000
""".replace("\n", " ")


def test_an_array_whose_flags_begin_beside_its_bracket_is_read():
    imported = import_text(
        "DISTRIBUTED_ARGS=(--nproc_per_node 8 --nnodes 4)\n"
        "PAR=(--tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 "
        "--sequence-parallel)\n"
        f'torchrun "${{DISTRIBUTED_ARGS[@]}}" pretrain_gpt.py "${{PAR[@]}}" {MODEL}'
    )
    plan = imported.scenario.plan
    assert (plan.tensor, plan.pipeline, plan.data, plan.sequence_parallel) == (4, 2, 4, True)
    assert imported.unread == ()


# the shape of Megatron-LM's own example of 175 billion parameters
GPT3 = """#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1

GPUS_PER_NODE=8
# Change for multinode config
MASTER_ADDR=localhost
NUM_NODES=16
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))

CHECKPOINT_PATH=$1 #<Specify path>
VOCAB_FILE=$2 #<Specify path to file>/gpt2-vocab.json
MERGE_FILE=$3
TP=8

DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE\x20
    --nnodes $NUM_NODES\x20
    --master_addr $MASTER_ADDR\x20
)
GPT_MODEL_ARGS=(
    --num-layers 96\x20
    --hidden-size 12288\x20
    --num-attention-heads 96\x20
    --seq-length 2048\x20
    --max-position-embeddings 2048\x20
    --attention-backend auto # Can use (flash/fused/unfused/local)
)
TRAINING_ARGS=(
    --micro-batch-size 1\x20
    --global-batch-size $((12 * WORLD_SIZE))
    --rampup-batch-size 16 16 5859375\x20
    --fp16
)
MODEL_PARALLEL_ARGS=(
\t--tensor-model-parallel-size ${TP}
\t--pipeline-model-parallel-size ${PP:-16}
)
DATA_ARGS=(
    --vocab-file $VOCAB_FILE\x20
    --merge-file $MERGE_FILE\x20
)
EVAL_AND_LOGGING_ARGS=(
    --save $CHECKPOINT_PATH\x20
)
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \\
    ${GPT_MODEL_ARGS[@]} \\
    ${TRAINING_ARGS[@]} \\
    ${MODEL_PARALLEL_ARGS[@]} \\
    ${DATA_ARGS[@]} \\
    ${EVAL_AND_LOGGING_ARGS[@]}
"""


def test_the_example_of_megatron_is_read_as_it_stands():
    imported = import_text(GPT3)
    scenario = imported.scenario
    assert (scenario.plan.tensor, scenario.plan.pipeline, scenario.plan.data) == (8, 16, 1)
    assert scenario.cluster.devices == 128
    assert (scenario.training.global_batch, scenario.training.precision) == (1536, "fp16")
    # 50257 entries of GPT-2, padded to a multiple of 128 x 8
    assert scenario.model.vocab == 51200
    expected = "model.vocab = 51200: the 50257 entries of GPT2BPETokenizer, padded"
    assert expected in imported.assumed
    names = [name.split(";")[0] for name in imported.unread]
    assert names == ["--master-addr", "--rampup-batch-size", "--save"]


@pytest.mark.parametrize(
    ("text", "vocab"),
    [
        ("--tokenizer-type GPT2BPETokenizer", 50304),
        ("--tokenizer-type GPT2BPETokenizer --tensor-model-parallel-size 4", 50688),
        ("--tokenizer-type GPT2BPETokenizer --make-vocab-size-divisible-by 1", 50257),
        ("--vocab-file gpt2-vocab.json --merge-file gpt2-merges.txt", 50304),
        ("--tokenizer-type Llama2Tokenizer --vocab-size 32000", 32000),
    ],
)
def test_the_vocabulary_of_gpt2_is_known(text, vocab):
    flags = MODEL.replace("--vocab-size 1000", text)
    assert import_text(flags).scenario.model.vocab == vocab


@pytest.mark.parametrize(
    ("text", "whose"), [("--tokenizer-type Llama2Tokenizer", " of Llama2Tokenizer"), ("", "")]
)
def test_another_vocabulary_must_be_given_and_can_be(text, whose):
    flags = MODEL.replace("--vocab-size 1000", text)
    with pytest.raises(ScenarioError) as caught:
        import_text(flags)
    assert str(caught.value) == (
        f"--vocab-size: is missing, and the file does not say how many entries the tokenizer{whose}"
        " has: add --vocab-size or --padded-vocab-size to it, or give --set model.vocab=N"
    )
    assert import_text(flags, fields={"model.vocab": 51200}).scenario.model.vocab == 51200


def launch(before, flags=MODEL):
    """A script with lines before its command."""
    return f"{before}\ntorchrun --nnodes $NNODES --nproc_per_node 8 pretrain_gpt.py {flags}\n"


def test_a_number_that_the_file_does_not_say_is_asked_for():
    with pytest.raises(ScenarioError) as caught:
        import_text(launch("NNODES=$1"))
    assert str(caught.value) == (
        "--nnodes: expected a whole number of at least 1, not '$1', "
        "which the file does not set: write the value into it"
    )
    given = import_text(launch("NNODES=$1"), cluster="hgx-h100", fields={"cluster.nodes": 2})
    assert given.scenario.plan.data == 16


def test_conditions_unused_arrays_and_second_trainings_are_named():
    text = launch('NNODES=1\nif [ -n "$BIG" ]; then\n  NNODES=2\nfi\nEXTRA=(--tensor 2)')
    imported = import_text(text + f"python3 pretrain_gpt.py {MODEL} --swiglu $MORE\n")
    assert imported.scenario.plan.data == 16
    assert imported.unread == (
        "EXTRA: no command uses it",
        "line 7: another training",
        "the condition of NNODES (line 3), taken as met",
    )


def test_flags_of_other_commands_are_not_the_trainings():
    imported = import_text(
        launch("NNODES=1\npip install --upgrade x\necho --num-layers 3")
        + "python tools/merge.py --swiglu\n"
    )
    assert imported.scenario.model.layers == 12
    assert not imported.scenario.model.gated_mlp
    assert imported.unread == ()


def test_a_model_that_is_chosen_by_its_size_is_the_one_named():
    sizes = """MODEL_SIZE=13B
if [[ ${MODEL_SIZE} == "7B" ]]; then
    LAYERS=32
elif [[ ${MODEL_SIZE} == "13B" ]]; then
    LAYERS=40
elif [[ ${MODEL_SIZE} == "70B" ]]; then
    LAYERS=80
    SPARE=1
fi
NNODES=1
"""
    imported = import_text(launch(sizes, MODEL.replace("layers 12", "layers $LAYERS")))
    assert imported.scenario.model.layers == 40
    assert imported.unread == ()
    imported = import_text(
        launch(sizes.replace("=13B", "=$1", 1), MODEL.replace("layers 12", "layers $LAYERS"))
    )
    assert imported.scenario.model.layers == 80
    assert imported.unread == tuple(
        f"the condition of LAYERS (line {line}), taken as met" for line in (3, 5, 7)
    )


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("[ -f run.sh ]", None),
        ("[ $X = 1 ]", None),
        ("[[ a == a* ]]", None),
        ("[ x -gt 1 ]", None),
        ("[ = 1 ]", None),
        ("[ ]", None),
        ("[", None),
        ("[ 1 = 1", None),
        ("!", None),
        ("grep x", None),
        ("! false", True),
        ("[ 10 -gt 9 ]", True),
    ],
)
def test_only_tests_of_known_words_are_judged(words, verdict):
    assert judge(words.split()) == verdict


def test_a_command_in_quotes_is_read():
    options = f'options="{MODEL} --swiglu"\nrun_cmd="python -u pretrain_gpt.py ${{options}}"\n'
    imported = import_text(options + 'srun -l --nodes 4 sh -c "${run_cmd}"\n')
    assert imported.scenario.model.gated_mlp
    assert imported.scenario.plan.data == 1


@pytest.mark.parametrize(
    "command",
    [
        'bash -c "torchrun p.py ${ARGS[*]} --swiglu"',
        'OPTIONS="${ARGS[@]}"\ntorchrun p.py $OPTIONS --swiglu',
        'OPTIONS="${ARGS[@]} ${MORE[*]}"',
        'CMD="torchrun p.py ${ARGS[@]} ${MORE[@]}"\neval $CMD',
    ],
)
def test_an_array_within_quotes_keeps_its_words_apart(command):
    imported = import_text(f"ARGS=({MODEL})\nMORE=(--swiglu)\n{command}\n")
    assert (imported.scenario.model.layers, imported.scenario.model.gated_mlp) == (12, True)


@pytest.mark.parametrize(
    "change",
    [
        "for TP in 2 4; do :; done",
        "for TP in 2 4; do",
        "f() {\n  TP=8\n}",
        "function f {\n  TP=8\n}",
        "while read -r TP; do :; done",
        "read TP",
        "case $SIZE in 7B) TP=2 ;; esac",
        "((TP++))",
        "((TP = $1))",
        "let TP=$1",
        "for ((TP=1; TP<4; TP++)); do :; done",
    ],
)
def test_a_value_that_cannot_be_followed_is_asked_for_and_named(change):
    text = launch(f"NNODES=1\nTP=1\n{change}", MODEL + "--tensor-model-parallel-size $TP")
    with pytest.raises(ScenarioError, match=r"not '.TP', which the file does not set"):
        import_text(text)
    imported = import_text(launch(f"NNODES=1\nTP=1\n{change}", MODEL + "--bf16 $TP"))
    assert any(entry.startswith("TP (line ") for entry in imported.unread)


def test_a_function_knows_what_it_assigned_and_a_file_that_is_read_is_named():
    flags = MODEL + "--tensor-model-parallel-size $TP"
    text = "source conf.sh\n. other.sh\ntrain() {\n" + launch("local TP=4 NNODES=1", flags) + "}\n"
    imported = import_text(text + "train\n")
    assert imported.scenario.plan.tensor == 4
    assert imported.unread == (
        "conf.sh (line 1): read by the script",
        "other.sh (line 2): read by the script",
    )


def test_a_variable_after_a_flag_may_hold_more_flags():
    imported = import_text(launch("NNODES=1", MODEL + '--bf16 $EXTRA --clip-grad 1 $MORE "$@"'))
    assert imported.scenario.training.precision == "bf16"
    assert set(imported.unread) == {
        "$EXTRA: the file does not set it",
        "$MORE: the file does not set it",
    }


def test_arrays_without_a_command_are_read_and_a_missing_flag_names_the_unused_ones():
    assert import_text(f"ARGS=({MODEL})\n").scenario.model.layers == 12
    parts = f"ARGS=({MODEL})\nTRAIN=(--micro-batch-size 1)\n".replace("--micro-batch-size 1 ", "")
    with pytest.raises(ScenarioError, match="size: is missing; TRAIN: no command uses it"):
        import_text(parts + "torchrun pretrain_gpt.py ${ARGS[@]}\n")


def test_a_here_document_that_is_not_read_is_named():
    text = f"sbatch <<EOF\nsrun python pretrain_gpt.py {MODEL}\nEOF\n"
    with pytest.raises(ScenarioError, match="the here-document of line 1: no command uses it"):
        import_text(text)
