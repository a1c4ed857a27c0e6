"""A judge behind an OpenAI-compatible address (extra `judge`): OPENAI_BASE_URL and OPENAI_API_KEY, as everybody sets.

The key stays in the client: no settings, log, file or message holds it.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from pairgrpo_jax.lm.data import Prompt
from pairgrpo_jax.lm.rewards.asking import Answer, JudgeError, in_thread
from pairgrpo_jax.lm.rewards.rubric import Rubric

_HOW = {
    "schema": 'Answer with a JSON object and nothing else: {"verdict": "A"} if reply A is better, {"verdict": "B"} if '
    'reply B is better, {"verdict": "tie"} if neither is.',
    "text": "Answer with one word and nothing else: A if reply A is better, B if reply B is better, tie if neither is.",
}
_VERDICTS = {"A": 0, "B": 1, "tie": None}
_FOLDED = {name.casefold(): value for name, value in _VERDICTS.items()}
_SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": list(_VERDICTS)}},
    "required": ["verdict"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": _SCHEMA}}
_OBJECT = re.compile(r"\{[^{}]*\}")
_WORDS = re.compile(r"\W*(?:reply )?(A|B|tie)(?: is (?:the )?better(?: reply)?)?\W*", re.IGNORECASE)
_LONGEST = 200  # characters of a server's words in a message
_PERMANENT = (400, 401, 403, 404, 405, 413, 422)


class OpenAIJudge:
    """`judge(prompt, a, b, **columns)` -> `Answer`, by one chat completion; a source of pairs through `sources.judge`.

    Attributes:
      identity: what its verdicts depend on beside the question: model, rubric and settings, but not the address.
    """

    def __init__(
        self,
        model: str,
        *,
        rubric: Rubric | None = None,
        answers: Literal["schema", "text"] = "schema",
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        timeout: float | None = None,
    ):
        """Makes the client; asks nothing.

        Args:
          model: its name at the server.
          rubric: what it is told.
          answers: "schema" asks for a JSON object and has the server hold the answer to its schema; "text", for servers
            and models that cannot, asks for one word. Both read either.
          temperature: of its sampling; None leaves it to the server.
          max_tokens: longest answer; None leaves it to the server.
          timeout: seconds until the next byte of an answer, and for the whole of what `check` asks; None is the
            client's 10 minutes, and no end. For whole questions see `Manner`.

        Raises:
          ValueError: without a key, or for an address that is none.
        """
        self.model, self.rubric, self.answers, self.timeout = model, rubric or Rubric(), answers, timeout
        self.options: dict[str, float | int | None] = {"temperature": temperature, "max_completion_tokens": max_tokens}
        self.__name__ = f"openai:{model}"
        self.__signature__ = self.rubric.signature
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not self._key.strip():
            raise ValueError(
                "OPENAI_API_KEY is not set; set it to the key of the judge's server (any word, for one that needs none)"
            )
        try:
            self._client = openai.OpenAI(max_retries=0, timeout=openai.NOT_GIVEN if timeout is None else timeout)
        except Exception as error:  # an address or proxy that is none
            raise ValueError(f"OPENAI_BASE_URL: no address of a server ({self._clean(error)})") from None
        self.address = _bare(str(self._client.base_url))

    @property
    def identity(self) -> list[Any]:
        """See the class."""
        return ["openai", self.model, self.rubric.text, self.answers, self.options]

    def __call__(self, prompt: Prompt, a: str, b: str, **columns: Any) -> Answer:
        """Asks which reply is better.

        Raises:
          JudgeError: if there is no answer, or none that is a verdict.
        """
        messages: list[Any] = [
            {"role": "system", "content": _HOW[self.answers]},
            {"role": "user", "content": self.rubric.filled(prompt, a, b, columns)},
        ]
        request: dict[str, Any] = {name: value for name, value in self.options.items() if value is not None}
        request |= {"response_format": _FORMAT} if self.answers == "schema" else {}
        try:
            completion = self._client.chat.completions.create(model=self.model, messages=messages, **request)
            content = completion.choices[0].message.content or ""
            usage = completion.usage
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:  # time-outs too
            raise JudgeError(f"{self.address}: {self._clean(error.__cause__ or error)}") from None
        except Exception as error:  # a reply that is not of the protocol
            raise JudgeError(f"{self.address}: not a chat completion ({self._clean(error)})") from None
        tokens = (0, 0) if usage is None else (usage.prompt_tokens or 0, usage.completion_tokens or 0)
        return Answer(self._verdict(content, tokens), *tokens)

    def check(self) -> None:
        """Asks one question, so that a server that is down or refuses is known before anything is computed.

        Raises:
          ValueError: if there is no answer; one that is no verdict will do.
        """
        columns = dict.fromkeys(self.rubric.columns, "2")
        prompt = ({"role": "user", "content": "What is 1 + 1?"},)
        try:
            in_thread(lambda: self(prompt, "2", "3", **columns), self.timeout)
        except TimeoutError as error:
            raise ValueError(f"judge {self.model}: {self.address}: {error}") from None
        except JudgeError as error:
            if not isinstance(error, NoVerdictError):
                raise ValueError(f"judge {self.model}: {error}") from None

    def _verdict(self, content: str, tokens: tuple[int, int] = (0, 0)) -> int | None:
        """The verdict in an answer: the last one, after what a model thought; NoVerdictError, with its tokens."""
        text = content.rpartition("</think>")[2].strip()
        for part in [text, *reversed(_OBJECT.findall(text))]:
            try:
                found = json.loads(part)
            except ValueError:
                continue
            word = found.get("verdict") if isinstance(found, dict) else None
            if isinstance(word, str) and word.casefold() in _FOLDED:
                return _FOLDED[word.casefold()]
        if words := _WORDS.fullmatch(text):
            return _FOLDED[words[1].casefold()]
        what = self._clean(text) or "nothing"
        raise NoVerdictError(f"expected a verdict A, B or tie, got {what!r}", tokens=tokens)

    def _refusal(self, error: openai.APIStatusError) -> JudgeError:
        said, hint = self._clean(error), ""
        if error.status_code in (400, 422) and re.search("response_format|schema", said):
            hint = "; for a server without structured answers: --judge-answers text"
        if error.status_code in (401, 403):
            hint = "; is OPENAI_API_KEY the key of this server?"
        pause = error.response.headers.get("retry-after", "")
        seconds = float(pause) if re.fullmatch(r"\d+(\.\d+)?", pause) else 0.0
        again = error.status_code not in _PERMANENT
        return JudgeError(f"{self.address}: {said}{hint}", again=again, pause=seconds)

    def _clean(self, words: Any) -> str:
        """Somebody else's words, without the key, in one line and not too long."""
        text = str(words).replace(self._key, "***") if self._key else str(words)
        text = re.sub(r"//[^/@\s]+@", "//***@", " ".join(text.split()))
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


class NoVerdictError(JudgeError):
    """A judge answered, but not with a verdict."""


def _bare(address: str) -> str:
    """An address without user, password and query; ValueError for one that is none."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("OPENAI_BASE_URL must be the address of a server, as http://127.0.0.1:8000/v1")
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
