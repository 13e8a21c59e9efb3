"""Text to index terms as Lucene's English analyzer makes them.

Standard tokenizer (Unicode word breaks, UAX 29), possessive 's off, lower case, Lucene's stop words, Porter stemmer.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import regex

_STOP_WORDS = """a an and are as at be but by for if in into is it no not of on or such that the their then there these
they this to was will with"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_LONGEST_TOKEN = 255
_REMEMBERED_TOKENS = 1 << 18
_POSSESSIVE = re.compile(r"['\u2019\uff07][sS]$")

_ASCII_TOKEN = re.compile(
    r"""_*[A-Za-z0-9]+
        (?: (?: _+ | (?<=[A-Za-z])['.:](?=[A-Za-z]) | (?<=[0-9])['.,;](?=[0-9]) ) [A-Za-z0-9]+ )*
        _*""",
    re.VERBOSE,
)
_EXTENDED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
_EXTENDED_EMOJI = r"[\p{WB=Extend}\p{WB=Format}--[\ufe0e\ufe0f]]*"
_LETTER = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]"
# Lucene's pictographs are those of Unicode 11, which counted symbols that later versions do not.
_PICTOGRAPH = r"\p{Extended_Pictographic}\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767"
_EMOJI = (
    rf"(?:[{_PICTOGRAPH}[\p{{Emoji}}--[0-9#*\p{{WB=Regional_Indicator}}\p{{Emoji_Modifier}}]]]"
    rf"\p{{Emoji_Modifier}}?{_EXTENDED_EMOJI}\ufe0f?)"
)
_TOKEN = regex.compile(
    rf"""{_EMOJI}(?:\u200d{_EMOJI})*
        | \p{{WB=Regional_Indicator}}{{2}}
        | [0-9#*]\ufe0f\u20e3
        | (?:\p{{WB=ExtendNumLet}}{_EXTENDED})*
          (?:(?:{_LETTER}|\p{{WB=Numeric}}|\p{{WB=Katakana}}){_EXTENDED})
          (?:
              (?: (?:\p{{WB=ExtendNumLet}}{_EXTENDED})+
                | (?<={_LETTER}{_EXTENDED})[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}']{_EXTENDED}(?={_LETTER})
                | (?<=\p{{WB=Numeric}}{_EXTENDED})[\p{{WB=MidNum}}\p{{WB=MidNumLet}}']{_EXTENDED}(?=\p{{WB=Numeric}})
                | (?<=\p{{WB=Katakana}}{_EXTENDED})(?=\p{{WB=Katakana}})
                | (?<!\p{{WB=Katakana}}{_EXTENDED})(?!\p{{WB=Katakana}})
              )
              (?:{_LETTER}|\p{{WB=Numeric}}|\p{{WB=Katakana}}){_EXTENDED}
          )*
          (?:\p{{WB=ExtendNumLet}}{_EXTENDED})*
        | [\p{{Script=Han}}\p{{Script=Hiragana}}]{_EXTENDED}
        | \p{{Line_Break=Complex_Context}}+
    """,
    regex.VERBOSE | regex.VERSION1,
)
_NO_WORD = regex.compile(
    rf"""[^\x00-\x7f\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}\p{{WB=Numeric}}\p{{WB=Katakana}}\p{{WB=ExtendNumLet}}\p{{WB=MidLetter}}
    \p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}\p{{WB=Regional_Indicator}}\p{{Emoji}}
    {_PICTOGRAPH}\p{{Script=Han}}\p{{Script=Hiragana}}\p{{Line_Break=Complex_Context}}]""",
    regex.VERBOSE | regex.VERSION1,
)
"""Characters beyond ASCII that are part of no token, like a space; without them most texts are ASCII."""


def terms(text: str) -> list[str]:
    """The terms of a text, in order, stop words left out."""
    if not text.isascii():
        text = _NO_WORD.sub(" ", text)
    tokens = (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)
    if max(map(len, tokens), default=0) > _LONGEST_TOKEN:
        size = _LONGEST_TOKEN
        tokens = [token[at : at + size] for token in tokens for at in range(0, len(token), size)]
    return [term for token in tokens if (term := _term(token)) is not None]


@functools.lru_cache(_REMEMBERED_TOKENS)
def _term(token: str) -> str | None:
    word = _POSSESSIVE.sub("", token).lower()
    return None if word in STOP_WORDS else _stemmer().stem(word, to_lowercase=False)


@functools.cache
def _stemmer() -> Any:
    """Lucene's PorterStemmer is Porter's own program: his paper of 1980 with the three changes that he made later."""
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)
