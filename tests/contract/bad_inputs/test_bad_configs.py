"""Bad experiments: the message of `tristage plan` about each. The command changes no file."""

from __future__ import annotations

import time

import pytest
import yaml

from tests.contract.bad_inputs.entry import VALID, check_message, experiment, plan_error, tristage

SAME = ["data.rm.path=hub/set", "data.ppo.path=hub/set"]
VLLM = "ppo.rollout.engine=vllm"
PLACKETT_LUCE = "rm.loss.kind=plackett_luce"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MAPPING_BOMB = "a: &a {k: 1, l: 2}\n" + "".join(
    f"{new}: &{new} {{{','.join(f'k{i}: *{old}' for i in range(9))}}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

OVERRIDES = [
    # Types
    ("sft.batch_size=lots", "sft.batch_size: 'lots' is not allowed; allowed: an integer ≥ 1"),
    ("sft.batch_size=8.5", "sft.batch_size: 8.5 is not allowed"),
    ("sft.batch_size=[8]", "sft.batch_size: [8] is not allowed"),
    ("seed=true", "seed: True is not allowed; allowed: an integer ≥ 0"),
    ("sft.learning_rate=yes", "sft.learning_rate: True is not allowed"),
    ("ppo.eval_steps=on", "ppo.eval_steps: True is not allowed"),
    ("base.revision=1234567", "put quotes around it"),
    (
        "data.sft.format=alpaca",
        "data.sft.format: 'alpaca' is not here: such rows have the format demonstration;",
    ),
    ("data.rm=[{path: a.jsonl, format: sharegpt}]", "'sharegpt' is not here: such rows have the format conv"),
    ("ppo.kl_coef=0,0.1", "is not allowed; allowed: a number ≥ 0"),
    ("ppo.kl_coef=0,0.1", "; `tristage sweep` tries several values"),
    ("sft.packing=maybe", "sft.packing: 'maybe' is not allowed; allowed: true or false"),
    ("ppo=fast", "ppo: 'fast' is not allowed; allowed: a section with the keys"),
    # Numbers that YAML 1.1, YAML 1.2 and people read differently
    ("ppo.seed=1:30", "ppo.seed: '1:30' is not allowed; allowed: an integer ≥ 0"),
    ("sft.epochs=1:30.5", "sft.epochs: '1:30.5' is not allowed; allowed: a number > 0"),
    ("ppo.rewards=[{weight: 1:30}]", "ppo.rewards[0].weight: '1:30' is not allowed"),
    ("seed=!!int 1:30", "seed: not YAML: 1:30 is not a plain int"),
    ("seed=017", "seed: '017' is not allowed"),
    ("seed='017'", "seed: '017' is not allowed"),
    ("seed=0o17", "seed: '0o17' is not allowed"),
    ("seed=1_", "seed: '1_' is not allowed"),
    ("sft.learning_rate=01e-4", "sft.learning_rate: '01e-4' is not allowed"),
    ("ppo.critic_warmup=on", "ppo.critic_warmup: True is not allowed"),
    ("ppo.dual_clip=yes", "ppo.dual_clip: True is not allowed"),
    ("tracking.wandb=off", "tracking.wandb: False is not allowed; allowed: one of auto"),
    ("base.model=no", "put quotes around it to make it text"),
    # Ranges
    ("sft.learning_rate=-1", "a number > 0 and ≤ 1"),
    ("sft.learning_rate=1e4", "a number > 0 and ≤ 1"),
    ("ppo.critic_learning_rate=3", "a number > 0 and ≤ 1"),
    ("sft.epochs=1e308", "sft.epochs: '1e308' is not allowed"),
    ("ppo.kl_coef=.inf", "ppo.kl_coef: inf is not allowed"),
    ("sft.max_steps=-1", "sft.max_steps: -1 is not allowed; allowed: an integer ≥ 0"),
    ("ppo.reference=rm", "ppo.reference: 'rm' is not allowed", "Allowed: one of sft, from"),
    ("ppo.from=''", "ppo.from: '' is empty; give a path, or leave the key out"),
    ("rm.from=https://h/x", "rm.from: a URL, a password or a token"),
    ("data.sft.limit=0", "data.sft.limit: 0 is not allowed"),
    ("data.sft.held_out=every", "data.sft.held_out: 'every' is not allowed; allowed: a number ≥ 0"),
    ("data.sft.held_out=alle", "did you mean all?"),
    ("data.sft.held_out=-1", "data.sft.held_out: -1 is not allowed; allowed: a number ≥ 0"),
    ("data.sft.held_out=true", "data.sft.held_out: True is not allowed"),
    # Several sources
    ("sft={on: 1, packing: true}", "sft.True: unknown key; `tristage explain sft` lists the keys of sft"),
    ("ppo.rewards=[{2: rm}]", "ppo.rewards[0][2]: unknown key; allowed in ppo.rewards[0]: "),
    ("data.sft=[]", "data.sft: [] is not allowed; give at least one"),
    ("data.sft=[a.jsonl]", "data.sft[0]: 'a.jsonl' is not allowed; allowed: a section with the keys path"),
    ("data.sft=[{path: a.jsonl}, {path: b.jsonl, weight: 0}]", "data.sft[1].weight: 0 is not allowed"),
    ("data.sft=[{path: a.jsonl}, {path: b.jsonl, weigth: 2}]", "did you mean data.sft[1].weight?"),
    ("data.rm=[{path: a.jsonl, label: a/b}]", "data.rm[0].label: 'a/b' is not allowed"),
    (
        "data.rm=[{path: a.jsonl, label: de_low}]",
        "data.rm[0].label: 'de_low' ends as a bound of a figure does",
    ),
    ("data.sft[1].limit=3", "data.sft[1].limit: data.sft is no list; leave [1] out"),
    ("sft={packing: true, group_by_length: true}", "sft.group_by_length: packed rows have about one length"),
    ("rm={packing: true, group_by_length: true}", "set this or rm.packing to false"),
    ("ppo.rollout.vllm.enforce_eager=maybe", "true or false"),
    ("ppo.rollout.vllm.gpu_memory_utilization=1.5", "a number > 0 and ≤ 1"),
    ("deepspeed.timeout_minutes=1e300", "deepspeed.timeout_minutes: '1e300' is not allowed"),
    (f"seed={'9' * 5000}", "seed: not YAML: Exceeds the limit"),
    # Tags of YAML whose values do not fit
    *(
        (f"{key}=!!{tag}", f"{key}: ")
        for key, tag in (
            *(("sft.packing", "bool maybe"), ("seed", "int ''"), ("seed", "int x"), ("seed", "timestamp x")),
            *(
                ("sft", "set {a, b}"),
                ("sft", "omap [a: 1]"),
                ("sft", "pairs [1]"),
                ("sft.epochs", "float ''"),
            ),
            *(
                ("base.model", "binary x?"),
                ("seed", "null 5"),
                ("sft", "map x"),
                ("sft", "seq x"),
                ("sft", "bool [1]"),
            ),
        )
    ),
    # Sizes that cannot be meant
    ("sft.batch_size=1000000000", "an integer ≥ 1 and ≤ 1,048,576"),
    ("ppo.rollout.batch_size=1000000000", "an integer ≥ 1 and ≤ 1,048,576"),
    ("ppo.rollout.max_new_tokens=1000000000", "an integer ≥ 1 and ≤ 1,048,576"),
    ("data.max_length=1000000000000", "an integer ≥ 1 and ≤ 1,048,576"),
    ("adapter.r=1000000", "an integer ≥ 1 and ≤ 16,384"),
    ("rm.rankings.completions=1000000000", "an integer ≥ 2 and ≤ 1,024"),
    ("best.n=1000000000", "an integer ≥ 2 and ≤ 65,536"),
    (f"rm.normalization_prompts={10**24}", "an integer ≥ 1 and ≤ 1,048,576"),
    (f"ppo.iterations={10**24}", "an integer ≥ 1 and ≤ 1,000,000,000"),
    (f"seed={10**400}", "an integer ≥ 0 and ≤ 9,223,372,036,854,775,807"),
    ("sft.weight_decay=1.0e+38", "a number ≥ 0 and ≤ 100"),
    ("ppo.rollout.temperature=1.0e+300", "a number > 0 and ≤ 100"),
    ("ppo.kl_coef=1.0e+300", "a number ≥ 0 and ≤ 1,000,000,000"),
    ("adapter.alpha=1.0e+300", "a number > 0 and ≤ 1,000,000,000"),
    (
        "ppo.rewards=[{source: 'https://h/', timeout_seconds: 1.0e+300}]",
        "ppo.rewards[0].timeout_seconds: 1e+300 is not allowed",
    ),
    (
        "ppo.rewards=[{source: 'https://h/', retries: 1000000000}]",
        "ppo.rewards[0].retries: 1000000000 is not allowed",
    ),
    ("ppo.rewards=[{weight: 1.0e+308}]", "ppo.rewards[0].weight: 1e+308 is not allowed"),
    ("ppo.rewards=[{weight: true}]", "ppo.rewards[0].weight: True is not allowed"),
    (f"ppo.rewards=[{{name: {'x' * 300}}}]", "ppo.rewards[0].name: 'xxx"),
    ("ppo.rewards=[{name: a/mean}]", "ppo.rewards[0].name: 'a/mean' is not allowed"),
    ('ppo.rewards=[{name: "\\e[31m"}]', "ppo.rewards[0].name: '\\x1b[31m' holds a control character"),
    ("ppo.rewards=[{name: ''}]", "ppo.rewards[0].name: '' is empty"),
    # Text that file names and terminals cannot hold
    ('data.sft.path="a\\0b.jsonl"', "data.sft.path: '", "control character"),
    ('base.model="\\ud800"', "base.model: '\\ud800' holds a control character or half of a surrogate pair"),
    ('tracking.group="\\e[31m"', "tracking.group: '\\x1b[31m' holds a control character"),
    ("base.model=''", "base.model: '' is empty"),
    ("name=../escape", "name: '../escape' is not allowed; allowed: text of at most 100 letters matching"),
    (f"name={'x' * 101}", "name: 'xxx", "is not allowed; allowed: text of at most 100 letters matching"),
    ("tracking.project=a/b", "tracking.project: 'a/b' is not allowed", "without any of / \\ # ? % :"),
    ("tracking.project=100%", "tracking.project: '100%' is not allowed"),
    (f"tracking.project={'x' * 129}", "tracking.project: 'xxx", "text of at most 128 letters"),
    ("tracking.entity=a:b", "tracking.entity: 'a:b' is not allowed"),
    (f"tracking.group={'x' * 129}", "tracking.group: 'xxx", "text of at most 128 letters"),
    (f"tracking.tags=[ok, {'x' * 65}]", "tracking.tags[1]: 'xxx", "text of at most 64 letters"),
    ("tracking.tags=['']", "tracking.tags[0]: '' is empty"),
    # Sections
    ("rm.base=small", "rm.base: 'small' is not allowed; allowed: a section with the keys model, revision"),
    ("rm.base={}", "rm.base.model: missing; allowed: text"),
    ("rm.base={model: small, modell: x}", "rm.base.modell: unknown key", "did you mean rm.base.model?"),
    (
        "rm.base={model: small, quantization: nf5}",
        "rm.base.quantization: 'nf5' is not allowed; did you mean nf4?",
    ),
    # Keys
    ("ppo.kl_coeff=1", "did you mean ppo.kl_coef?"),
    ("kl_coef=1", "did you mean ppo.kl_coef?"),
    (f"{'x' * 10000}=1", "unknown key; allowed here: name"),
    ("sft.batch_size", "no value; write sft.batch_size=VALUE"),
    (
        "rm.rankings.labeller=human",
        "rm.rankings.labeller: 'human' is not allowed; allowed: one of file, people, warmth, warm_ending or",
        r"text matching \.ya?ml$ or a section with the keys agree",
    ),
    *(
        (
            f"rm.rankings.labeller={labeller}",
            "rm.rankings.labeller: ",
            "a section with the keys agree (file: data",
        )
        for labeller in (
            *("", "judge.json", "{}", "[warmth, warm_ending]", "{agree: warmth}", "{agree: [warmth]}"),
            *("{agree: [warmth, people]}", "{agree: [warmth, {agree: [warmth, warm_ending]}]}"),
            *("{agree: [warmth, warm_ending, 'm:f']}", "{agree: [warmth, warm_ending], disagree: []}"),
        )
    ),
    ("rm.rankings.labeller=https://h/judge.yaml", "rm.rankings.labeller: "),
    ("rm.rankings.labeller.agree=[warmth, warm_ending]", "rm.rankings.labeller.agree: unknown key"),
    ("rm.loss=mse", "rm.loss: 'mse' is not allowed; allowed: a section with the keys kind, ties, margin"),
    (
        "rm.loss.kind=bradley-terry",
        "did you mean bradley_terry? Allowed: one of bradley_terry, plackett_luce",
    ),
    ("rm.loss.ties=both", "rm.loss.ties: 'both' is not allowed; allowed: one of ignore, half"),
    ("rm.loss.margin=0.5", "rm.loss.margin: 0.5 is not allowed"),
    ("rm.loss.margin_scale=0", "rm.loss.margin_scale: 0 is not allowed; allowed: a number > 0"),
    ("rm.loss.center=-0.1", "rm.loss.center: -0.1 is not allowed; allowed: a number ≥ 0"),
    (
        "rm.loss.label_smoothing=0.5",
        "rm.loss.label_smoothing: 0.5 is not allowed; allowed: a number ≥ 0 and <",
    ),
    ("ppo.judge=vibes", "ppo.judge: 'vibes' is not allowed"),
    (
        "ppo.rollout.engine=continous",
        "ppo.rollout.engine: 'continous' is not allowed; did you mean continuous? Allowed: one of auto, hf",
    ),
    ("adapter.target_modules=[]", "adapter.target_modules: [] is not allowed"),
    ("sft={a: {b", "sft: not YAML"),
    ("sft={epochs: 1, epochs: 2}", "sft.epochs: given twice"),
    ("ppo.rewards=[{source: rm, weight: 1, weight: 2}]", "ppo.rewards[0].weight: given twice"),
    # Keys that a value of another key makes void
    (
        "ppo.rewards=[{source: rm, timeout_seconds: 5}]",
        "timeout_seconds is of requests to an endpoint; leave",
    ),
    ("ppo.rewards=[{source: 'm:f', key_variable: KEY}]", "key_variable is of requests to an endpoint"),
    ("ppo.rewards=[{source: 'm:f', retries: 0}]", "retries is of requests to an endpoint"),
    ("data.sft={path: a.jsonl, split: test}", "split is of hub datasets and folders, and the path is a file"),
    ("data.rm={path: a.parquet, name: x}", "name is of hub datasets and folders"),
    ("data.ppo={path: a.json, revision: main}", "revision is of hub datasets and folders"),
    ("data.chat_template=''", "data.chat_template: '' is empty; give a path, or leave the key out"),
    ("deepspeed.config=''", "deepspeed.config: '' is empty"),
]

CONTRADICTIONS = [
    (
        ["adapter.init=loftq", "base.quantization=none"],
        "adapter.init: loftq takes up what quantization",
    ),
    (["adapter.dora=true", "base.quantization=int8"], "adapter.dora: does not train on an int8 base"),
    (["adapter.dora=true", "ppo.rollout.engine=vllm"], "ppo.rollout.engine: vllm has no DoRA"),
    (["sft.method=ia3", "sft.from=a"], "sft.method: sft.from is of LoRA, and ia3 has none"),
    (["sft.method=bitfit", "adapter.dora=true"], "sft.method: adapter.dora is of LoRA, and bitfit has none"),
    (
        ["sft.method=adalora", "adapter.init=loftq"],
        "sft.method: adapter.init is of LoRA, and adalora",
    ),
    (["sft.method=adalora", "adapter.r=1"], "adapter.r: adalora takes half of the ranks away; set this to 2"),
    (["sft.method=ia3", "adapter.target_modules=[q_proj]"], "sft.method: ia3 has layers of its own"),
    (["sft.method=ia3", "sft.lora_plus_ratio=16"], "sft.method: sft.lora_plus_ratio is of LoRA's B"),
    (["sft.method=prompt", "sft.packing=true"], "sft.method: prompt puts vectors before each example"),
    (["sft.method=prefix", "base.gradient_checkpointing=true"], "sft.method: prefix keeps keys and values"),
    (
        ["sft.method=random_subset"],
        "sft.method: random_subset changes single weights, and those of",
    ),
    (["sft.virtual_tokens=5"], "sft.virtual_tokens: sft.method: lora has none; leave it out"),
    (["rm.rankings.earlier=[a.jsonl]"], "rm.rankings.earlier: is beside the rankings of a labeller"),
    (
        ["data.sft=[{path: a.jsonl}, {path: a.jsonl}]"],
        "sft[1]: it reads what sft[0] reads; name the source once",
    ),
    (["data.rm=[{path: a.jsonl, label: x}, {path: b.jsonl, label: x}]"], "rm[1].label: 'x' is rm[0], too"),
    (["data.ppo=[{path: a.jsonl, min_rating: 3}]"], "ppo[0].min_rating: only sft learns rated answers"),
    (["data.sft.held_out=1.5"], "held_out (1.5) must be a share below 1 or a whole number of prompts"),
    (
        ["data.ppo=[{path: a.jsonl, held_out: all}, {path: b.jsonl, held_out: all}]"],
        "ppo: held_out is all in each of its sources, which leaves none to train on; add a source",
    ),
    (["data.sft.held_out=all"], "sft: held_out is all in each of its sources"),
    (["data.shares.sft=0.9"], "the three shares must add up to at most 1"),
    (["ppo.rewards=[{source: rm}, {source: rm}]"], "rewards: two terms are called rm; set their name"),
    (["ppo.rewards=[{source: 'a:f'}, {source: 'b:f'}]"], "rewards: two terms are called f; set their name"),
    (["ppo.rewards=[{source: rm}, {source: 'a:f', name: reward_total}]"], "reward_total is the sum of the"),
    (["ppo.rewards=[{weight: 0}]"], "rewards: every weight is 0, so nothing is rewarded"),
    (["ppo.rewards=[{source: 'a:f'}, {name: f}]"], "rewards: two terms are called f; set their name"),
    (["ppo.minibatches=3"], "minibatches (3) must divide batch_size (64)"),
    (["data.max_prompt_length=1024"], "max_prompt_length must be below max_length"),
    (
        ["ppo.rollout.max_new_tokens=600"],
        "ppo.rollout.max_new_tokens: 600 tokens after a prompt of data.max_prompt_length (512) are more "
        "than data.max_length (1024)",
    ),
    (
        ["rm.rankings.labeller=warmth", "rm.rankings.rollout.max_new_tokens=600"],
        "rm.rankings.rollout.max_new_tokens: 600 tokens after a prompt",
    ),
    (
        ["sft.use_best=true", "sft.eval_steps=50", "data.sft.held_out=0"],
        "sft.use_best: nothing is held out to choose by; set data.sft.held_out",
    ),
    (["rm.use_best=true", "rm.eval_steps=30"], "eval_steps (30) must be a multiple of save_steps (50)"),
    (
        ["sft.use_best=true", "sft.eval_steps=50", "sft.max_steps=0"],
        "use_best chooses among checkpoints, and max_steps: 0 makes none; leave it out",
    ),
    (["rm.max_steps=0"], "max_steps: 0 leaves the head random, which scores nothing; name a reward model in"),
    (["ppo.reference=from"], "reference: from needs a folder in from"),
    (["ppo.kl_target=6", "ppo.kl_horizon=10"], "kl_horizon (10) must be above a fifth of batch_size (64)"),
    (["ppo.rewards=[{source: 'https://u:p@h/'}]"], "a URL with a user's name or password in it"),
    *(
        ([f"ppo.rewards=[{{source: 'https://h/{mark}'}}]"], "a URL with a query, parameters or a fragment")
        for mark in ("?key=k", "?", "#token=t", ";key=k", "x;k/y")
    ),
    (["ppo.rewards=[{source: 'https://u%3Ap%40h/'}]"], "a URL whose host and port are not readable"),
    *(
        ([f"ppo.rewards=[{{source: 'https://h:{port}/'}}]"], "a URL whose host and port are not readable")
        for port in (0, 65536, 99999, "00")
    ),
    (["ppo.rewards=[{source: 'https://h:p/w@h/'}]"], "a URL whose host and port are not readable"),
    (["ppo.rewards=[{source: 'https://h/?key=k'}]"], "a URL with a query"),
    (["ppo.kl_estimator=k3", "ppo.rollout.top_p=0.9"], "kl_estimator: k3 is biased if rollout.top_k or"),
    (["ppo.kl_estimator=k3", "ppo.rollout.top_k=9"], "kl_estimator: k3 is biased if rollout.top_k or"),
    (["rm.base.model=tiny-random"], "rm.base: is the experiment's own base; leave rm.base out"),
    (["rm.rankings.labeller={agree: [warmth, warmth]}"], "rm.rankings.labeller: agree: names warmth twice"),
    (
        ["rm.rankings.merge=bradley_terry"],
        "rm.rankings.merge: bradley_terry merges the rankings of several people, and rm.rankings.labeller is "
        "file; set the labeller to people",
    ),
    *(
        (
            [PLACKETT_LUCE, f"rm.loss.{option}"],
            f"rm.loss.{key}: {reason}, but kind: plackett_luce has no pairs",
        )
        for option, key, reason in (
            ("ties=half", "ties", "counts tied pairs"),
            ("margin=scores", "margin", "sets a margin for pairs"),
            ("label_smoothing=0.1", "label_smoothing", "smooths the labels of pairs"),
        )
    ),
    (
        ["rm.loss.ties=half", "rm.rankings={labeller: warmth, completions: 2}"],
        "rm.loss.ties: has no effect on rankings of two answers, which are left out if both tie; set it to",
    ),
    (
        ["rm.loss.margin_scale=2"],
        "rm.loss.margin_scale: has no effect without a margin; set rm.loss.margin to",
    ),
    (
        ["rm.loss={margin: scores, label_smoothing: 0.1}"],
        "rm.loss.label_smoothing: a label that may be wrong has no margin; set rm.loss.margin to none, or",
    ),
    *(
        (
            ["rm.loss.margin=scores", f"rm.rankings.labeller={labeller}"],
            f"rm.loss.margin: needs scores, but rm.rankings.labeller ({name}) gives ranks only; set this to",
        )
        for labeller, name in (
            ("people", "people"),
            ("judges/j.yaml", "j.yaml"),
            ("{agree: [warmth, warm_ending]}", "warmth and warm_ending, where they agree"),
        )
    ),
    (
        ["ppo.ensemble=min"],
        "ppo.ensemble: combines several reward models; raise rm.members, or leave this out",
    ),
    (
        ["rm.members=2", "ppo.ensemble=min", "ppo.ensemble_coef=2"],
        "ppo.ensemble_coef: has no effect without a deviation; set ppo.ensemble to mean_minus_deviation",
    ),
    (
        ["rm.members=2", "ppo.ensemble=min", "ppo.rewards=[{source: 'a:b'}]"],
        "ppo.ensemble: has no effect, as no term of ppo.rewards is rm",
    ),
    (["sft.packing=true", "base.attention=eager"], "sft.packing: packed examples are kept apart by a mask"),
    (["sft.packing=true", "base.attention=flash_attention_2"], "set base.attention to sdpa"),
    (["rm.packing=true", "base.attention=eager"], "rm.packing: packed examples are kept apart by a mask"),
    (
        [VLLM, "base.quantization=int8"],
        "ppo.rollout.engine: vllm does not load an int8 base; set base.quantization",
    ),
    (
        [VLLM, "base.compute_dtype=float32"],
        "ppo.rollout.engine: vllm computes in bf16 on an NF4 base; set base.compute_dtype to auto, or",
    ),
    (
        [VLLM, "base.trust_remote_code=true"],
        "ppo.rollout.engine: vllm does not run the code that base.trust_",
    ),
    (
        [VLLM, "base.quantization=none", "adapter.target_modules=[q_proj, lm_head]"],
        "ppo.rollout.engine: vllm takes no adapter on lm_head; leave it out of adapter.target_modules",
    ),
    (
        [VLLM, "base.quantization=none", "adapter.target_modules=[model.embed_tokens]"],
        "ppo.rollout.engine: vllm takes no adapter on model.embed_tokens; leave it out",
    ),
    ([VLLM, "adapter.r=513"], "ppo.rollout.engine: vllm takes adapters up to rank 512; lower adapter.r"),
    ([VLLM, "ppo.rollout.temperature=0.001"], "ppo.rollout.temperature: vllm raises values below 0.01"),
    (
        [VLLM, "ppo.rollout.top_p=0.9"],
        "ppo.rollout.top_p: vllm reports which tokens it could sample only if",
    ),
    (["rm.rankings.rollout.engine=vllm", "adapter.r=513"], "rm.rankings.rollout.engine: vllm takes adapters"),
    (["best.rollout={engine: vllm}", "adapter.r=513"], "best.rollout.engine: vllm takes adapters up to rank"),
    ([*SAME, "data.shares.ppo=0"], "data.shares.ppo: 0, but data.ppo reads the same source as data.rm"),
]

FILES = [
    (b"", "empty; it needs the keys name, base, data"),
    (b"- 1\n- 2\n", "holds list [1, 2], not a mapping"),
    (b"base:\n\tmodel: x\n", "line 2 column 1", "indent with spaces, not tabs"),
    (bytes(range(256)), "not UTF-8: byte 128 is 0x80; save it as UTF-8"),
    (VALID.encode("utf-16"), "not UTF-8"),
    (b"PK\x03\x04" + bytes(range(60)), "not YAML: unacceptable character"),
    ((VALID + "3: x\nsft: {null: 1}\n").encode(), ":8: [3]: unknown key", "sft.None: unknown key"),
    ((VALID + "name: again\n").encode(), ":8: name: given twice, first on line 1"),
    ((VALID + BOMB).encode(), "its anchors expand to", "write the values out"),
    (BOMB.encode() + b"z: {b: *i}\n", "its anchors expand to"),
    ((VALID + MAPPING_BOMB).encode(), "its anchors expand to"),
    ((VALID + "sft: " + "[" * 3000 + "]" * 3000).encode(), "nested too deeply"),
    ((VALID + "sft: " + "{a: " * 3000 + "1" + "}" * 3000).encode(), "nested too deeply"),
    ((VALID + "sft: &s {epochs: *s}\n").encode(), "an anchor holds itself; write the values out"),
    ((VALID + f"a: &s {{{', '.join(f'k{i}: *s' for i in range(40))}}}\n").encode(), "an anchor holds itself"),
    ((VALID + f"a: &s [{', '.join(['*s'] * 40)}]\n").encode(), "an anchor holds itself"),
    ((VALID + "ppo: {rewards: [{source: rm, weight: 1, weight: 2}]}\n").encode(), "weight: given twice"),
    ((VALID + "#" * 2**20).encode(), "longer than 65,536 bytes; give the path of another file"),
    ((VALID + "? [a]\n: 3\n").encode(), "line 8 column 3: found unhashable key"),
    ((VALID + "".join(f"k{i}: 1\n" for i in range(500))).encode(), "and 480 more"),
    ((VALID + "a: !!python/object/apply:os.system [id]\n").encode(), "could not determine a constructor"),
]


@pytest.mark.parametrize(
    ("override", "parts"),
    [(override, parts) for override, *parts in OVERRIDES],
    ids=lambda value: str(value)[:30],
)
def test_override(override, parts, tmp_path):
    message = plan_error(tmp_path, VALID, override)
    check_message(message, "command line (", *parts)
    assert message.count("\n") == 1


@pytest.mark.parametrize(("overrides", "part"), CONTRADICTIONS, ids=lambda value: str(value)[:40])
def test_contradiction(overrides, part, tmp_path):
    check_message(plan_error(tmp_path, VALID, *overrides), part)


@pytest.mark.parametrize("key", ["data.sft.path", "base.model", "rm.base.model", "deepspeed.config",
                                 "data.chat_template", "tracking.project", "data.rm.name"])  # fmt: skip
@pytest.mark.parametrize("url", [
    "http://user:S3CRET@host/x.jsonl", "HTTPS://S3CRET@host/", "https://user:a/S3CRET@host/", "s3://S3CRET@b/x",
    "https://h/x?token=S3CRET", "https://h/x.jsonl?S3CRET", "https://h/x#token=S3CRET", "https://h/x;key=S3CRET",
    "user:S3CRET@host/x.jsonl", "x.jsonl?token=S3CRET", "https://h/S3CRET",
])  # fmt: skip
@pytest.mark.parametrize("where", ["file", "command line"])
def test_a_url_is_refused_and_not_repeated(where, url, key, tmp_path):
    overrides = [f"{key}={url}"]
    text = VALID
    if where == "file":
        tree = yaml.safe_load(VALID)
        section = tree
        for part in key.split(".")[:-1]:
            section = section.setdefault(part, {})
        section[key.split(".")[-1]] = url
        text, overrides = yaml.safe_dump(tree), []
    message = plan_error(tmp_path, text, *overrides)
    check_message(message, f"{key}: a URL, a password or a token")
    assert "S3CRET" not in message and message.count("\n") == 1


def test_a_key_in_place_of_its_variable_is_not_repeated(tmp_path):
    message = plan_error(tmp_path, VALID, "ppo.rewards=[{source: 'https://h/', key_variable: 'sk-S3CRET'}]")
    check_message(message, "ppo.rewards[0].key_variable: ")
    assert "S3CRET" not in message


@pytest.mark.parametrize(("content", "parts"), [(content, parts) for content, *parts in FILES])
def test_file(content, parts, tmp_path):
    message = plan_error(tmp_path, content).splitlines()
    assert len(message) <= 21 and message[0].startswith(f"error: {tmp_path}/trial.yaml")
    check_message("\n".join(message[:1] + message[-1:]), *parts)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.sft", "{0: {path: a.jsonl}, 1: {path: b.jsonl}}"), ("tracking.tags", "{0: a}")],
)
def test_numbers_as_keys_in_place_of_a_list(key, value, tmp_path):
    check_message(plan_error(tmp_path, VALID, f"{key}={value}"), f": {key}[0]: unknown key; write a list\n")


@pytest.mark.parametrize("size", [50_000, 1_000_000])
@pytest.mark.parametrize("where", ["file", "command line"])
def test_a_long_list_is_told_soon_and_as_what_it_is(where, size, tmp_path):
    values = f"[{'1,' * (size // 2)}]"
    begin = time.monotonic()
    if where == "file":
        message = plan_error(tmp_path, VALID + f"adapter: {{target_modules: {values}}}\n")
    else:
        message = plan_error(tmp_path, VALID, f"adapter.target_modules={values}")
    assert time.monotonic() - begin < 20
    check_message(
        message, "longer than 65,536 bytes" if size > 65_536 else "adapter.target_modules: [1, 1, 1"
    )


def test_batch_size_that_ranks_do_not_divide(tmp_path):
    status, _, stderr = tristage("plan", "--config", experiment(tmp_path), "--num-accelerators", "3")
    assert status == 2
    check_message(stderr, "sft.batch_size: 64 cannot be shared equally by 3 ranks")


@pytest.mark.parametrize("name", ["none.yaml", "none/../trial.yaml"])
def test_no_such_config(name, tmp_path):
    status, _, stderr = tristage("plan", "--config", tmp_path / name)
    assert status == 2
    check_message(stderr, f"error: {tmp_path}", "cannot be read", "give the path of a YAML")


def test_all_missing_files_are_named_at_once(tmp_path):
    file = experiment(tmp_path, VALID + "deepspeed: {config: z.json}\n")
    (tmp_path / "rm.jsonl").unlink()
    (tmp_path / "ppo.jsonl").unlink()
    status, _, stderr = tristage(
        "run",
        "--config",
        file,
        "--run-dir",
        tmp_path / "run",
        "base.model=/no/model",
        "rm.base.model=/none",
        "data.chat_template=t.j",
    )
    assert status == 2 and not (tmp_path / "run").exists()
    missing = [
        f"data.{stage}.path: {tmp_path}/{stage}.jsonl: there is no such file" for stage in ("rm", "ppo")
    ]
    check_message(stderr, *missing, "base.model: /no/model: there is no such folder")
    check_message(stderr, "rm.base.model: /none: there is no such folder")
    check_message(stderr, "data.chat_template: ", f"cannot read {tmp_path}/z.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sft.path='sft.jsonl '", "data.sft.path: 'sft.jsonl ': there is no such file, and no data set"),
        ("data.rm.path=rm.jsonl/", "data.rm.path: 'rm.jsonl/': there is no such file, and no data set"),
        ("data.ppo.path=a/b/c", "data.ppo.path: 'a/b/c': there is no such file, and no data set"),
        ("base.model='a b'", "base.model: 'a b': there is no such folder, and no model"),
        ("base.model=tiny-random/", "base.model: 'tiny-random/': there is no such folder, and no model"),
        ("rm.base.model=a--b", "rm.base.model: 'a--b': there is no such folder, and no model"),
    ],
)
def test_a_name_that_neither_this_machine_nor_the_hub_has(override, message, tmp_path):
    check_message(plan_error(tmp_path, VALID, override), message)


@pytest.mark.parametrize("token", ["hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8, "ghp_" + "a1B2" * 8])
@pytest.mark.parametrize("key", ["data.sft.path", "base.model", "base.revision", "sft.from"])
def test_a_token_in_place_of_a_name_is_not_repeated(key, token, tmp_path):
    message = plan_error(tmp_path, VALID, f"{key}={token}")
    check_message(message, f"{key}: a URL, a password or a token")
    assert token not in message


IDLE = {
    "rm.rankings.completions=8": "rm.rankings.labeller is file",
    "rm.rankings.complete=0.5": "rm.rankings.labeller is not people",
    "ppo.kl_horizon=5000": "ppo.kl_target is not set",
    "ppo.ptx_batch_size=4": "ppo.ptx_coef is 0",
}


@pytest.mark.parametrize("override", IDLE)
def test_a_setting_that_another_makes_idle_is_told(override, tmp_path):
    status, out, _ = tristage("plan", experiment(tmp_path), "--run-dir", tmp_path / "run", override)
    assert status == 0 and f"is set, and has no effect: {IDLE[override]}" in " ".join(out.split())
    normalised_by = "rm.rankings.rollout.temperature=0.5"  # also if a file has the rankings
    status, out, _ = tristage("plan", experiment(tmp_path), "--run-dir", tmp_path / "run", normalised_by)
    assert status == 0 and "has no effect" not in out
