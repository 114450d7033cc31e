"""Ollama's Modelfile of a GGUF file.

Ollama does not run the chat template in the file. Without a TEMPLATE in the Modelfile, it takes
the one of its own that looks most like it, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from apps.trained_run import TrainedRun
from data.batches.template_process import TemplateFault, render
from data.sources.messages import Message

END = "<|im_end|>"
# ChatML in the language of Go's templates.
CHATML = f"""{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}{END}
{{{{ end }}}}<|im_start|>assistant
"""


def modelfile(run: TrainedRun, name: str, template: Sequence[str]) -> str:
    """The text of the Modelfile.

    Args:
        name: of the GGUF file.
        template: see `template_lines`.
    """
    rollout = run.config.ppo.rollout
    lines = [
        f"FROM ./{name}",
        *template,
        f"PARAMETER temperature {rollout.temperature:g}",
        f"PARAMETER top_p {rollout.top_p:g}",
        f"PARAMETER top_k {rollout.top_k or 0}",
        f"PARAMETER num_predict {rollout.max_new_tokens}",
        "PARAMETER repeat_penalty 1",  # Ollama's own would change the policy
    ]
    return "\n".join(lines) + "\n"


def template_lines(run: TrainedRun, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The Modelfile's lines on the template; none for a chat's that is not ChatML: Ollama has to guess it."""
    if not run.chat:
        return ['TEMPLATE "{{ .Prompt }}"']  # the prompt is continued as it is
    default = default_system(tokenizer)
    if default is None:
        return []
    system = [f'SYSTEM """{default}"""'] if default else []
    return [f'TEMPLATE """{CHATML}"""', *system, f'PARAMETER stop "{END}"']


def default_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The system message that a ChatML template adds if there is none, or ""; None for another template.

    What it writes for three conversations is compared with ChatML. Blanks around the texts must stay.
    """
    system, user, answer = (_message(role, f" {role}\n text\n ") for role in ("system", "user", "assistant"))
    try:
        given, once, again = render(
            tokenizer, [(talk, True) for talk in ([system, user], [user], [user, answer, user])]
        )
    except TemplateFault:
        return None
    added = once.removesuffix(_chatml(user))
    default = added.removeprefix("<|im_start|>system\n").removesuffix(f"{END}\n")
    before = [_message("system", default)] if added else []
    expected = [_chatml(system, user), _chatml(*before, user), _chatml(*before, user, answer, user)]
    return default if [given, once, again] == expected and '"' not in default else None


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _chatml(*messages: Message) -> str:
    turns = (f"<|im_start|>{message['role']}\n{message['content']}{END}\n" for message in messages)
    return "".join(turns) + "<|im_start|>assistant\n"
