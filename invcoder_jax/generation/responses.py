"""When a response has ended, and what its text is: EOS, length limit and stop strings.

Stop strings are looked for in text, so that they may begin and end inside tokens; each token is
decoded a bounded number of times. Knows nothing of devices.
Usage: `completion = Response(request).take(tokens, tokenizer, sampling)` at every sync.
"""

import bisect
import dataclasses
import os
from collections.abc import Sequence

from invcoder_jax.generation.engine import Completion, Request
from invcoder_jax.settings import SamplingSettings
from invcoder_jax.tokenization import Tokenizer


@dataclasses.dataclass
class Response:
    """A request and the tokens that were sampled for it so far, without EOS."""

    request: Request
    sampled: list[int] = dataclasses.field(default_factory=list)

    def take(
        self, tokens: Sequence[int], tokenizer: Tokenizer, sampling: SamplingSettings
    ) -> Completion | None:
        """Add newly sampled tokens (EOS at most last); the completion if the response has ended."""
        reason = ""
        if tokens and tokens[-1] in tokenizer.eos_ids:
            tokens, reason = tokens[:-1], "eos"
        self.sampled += tokens
        if not reason and len(self.sampled) >= sampling.max_new_tokens:
            reason = "length"
        if not reason and not self._may_have_stop(len(tokens), tokenizer, sampling.stop):
            return None
        return self._conclude(reason, tokenizer, sampling.stop)

    def _may_have_stop(self, new: int, tokenizer: Tokenizer, stops: Sequence[str]) -> bool:
        """Whether the last `new` tokens complete a stop string, by a look at the text's tail.

        A token stands for at least a byte, so a stop string begins at most its bytes earlier.
        Special tokens stand for none; a stop string around one is found when the response ends.
        """
        if not stops:
            return False
        earlier = max(len(stop.encode()) for stop in stops)
        tail = tokenizer.decode(self.sampled[-(new + earlier) :])
        return any(stop in tail for stop in stops)

    def _conclude(
        self, reason: str, tokenizer: Tokenizer, stops: Sequence[str]
    ) -> Completion | None:
        """The completion, its text cut before the first stop string; None if it goes on."""
        request = self.request
        token_ids = (*request.forced, *self.sampled)
        text = tokenizer.decode(token_ids)
        # Forced tokens may end inside a character, so their text need not begin the whole one.
        start = len(os.path.commonprefix([tokenizer.decode(request.forced), text]))
        cuts = [at for at in (text.find(stop, start) for stop in stops) if at >= 0]
        if cuts:
            reason, text = "stop", text[: min(cuts)]
            token_ids = _tokens_within(text, token_ids, tokenizer)
        if not reason:
            return None
        return Completion(request.id, request.sample, text, token_ids, reason)


def _tokens_within(text: str, token_ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The most first tokens whose text is no longer than `text`: none that straddles its end."""
    count = bisect.bisect_right(
        range(1, len(token_ids) + 1),
        len(text),
        key=lambda length: len(tokenizer.decode(token_ids[:length])),
    )
    return token_ids[:count]
