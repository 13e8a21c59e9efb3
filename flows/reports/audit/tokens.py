"""The text of each token of a response, so that the texts of all its tokens together are the response."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence

from infra.manifest import FolderRecord, Manifest
from infra.store import CampaignStore, read_file
from opid_core.reading import parse_json


class ByteTokenizer:
    """Bytes of the tokens of a byte-level BPE tokenizer (GPT-2's, Qwen's, Llama 3's and this project's kind)."""

    def __init__(self, data: bytes) -> None:
        """`data` is a `tokenizer.json`."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(data.decode())
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to a response's bytes: nothing for a special token, which responses leave out."""
        if token_id not in self._known:
            name = None if token_id in self._special else self._tokenizer.id_to_token(token_id)
            self._known[token_id] = b"" if name is None else _token_bytes(name)
        return self._known[token_id]

    def name_of(self, token_id: int) -> str | None:
        """The name of a special token, such as `<|end|>`; None for all others."""
        return self._tokenizer.id_to_token(token_id) if token_id in self._special else None

    def lengths(self, token_ids: Sequence[int], text: str) -> list[int] | None:
        """Characters (code points) of `text` that each token stands for, or None where the tokens' bytes are not
        `text`. A character of several tokens counts for the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces = [decoder.decode(self.bytes_of(token_id)) for token_id in token_ids]
        if pieces:
            pieces[-1] += decoder.decode(b"", True)
        return [len(piece) for piece in pieces] if "".join(pieces) == text else None


def tokenizer_json(store: CampaignStore, policy: FolderRecord) -> bytes | None:
    """The file `tokenizer.json` of a stored policy; None where it has none. Raises DataError where it is damaged."""
    found = (file for file in policy.files if policy.name_of(file) == "tokenizer.json")
    return next((read_file(store, file) for file in found), None)


def stored_tokenizer(store: CampaignStore, manifest: Manifest) -> ByteTokenizer | str:
    """The tokenizer in the policy folder that `manifest` names, or why there is none to split text with.

    Reads the one file that it needs, not the policy.
    """
    path = f"{manifest.policy.uri}/tokenizer.json"
    data = tokenizer_json(store, manifest.policy)
    if data is None:
        return f"the policy folder {manifest.policy.uri} holds no tokenizer.json"
    decoder = parse_json(data, len(data)).get("decoder") or {}
    if "ByteLevel" not in {decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))}:
        return f"{path} is no byte-level tokenizer (its decoder is {decoder.get('type')})"
    return ByteTokenizer(data)


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself, or one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


def _token_bytes(name: str) -> bytes:
    table = _byte_of_character()
    if all(character in table for character in name):
        return bytes(table[character] for character in name)
    return name.encode()  # an added token, kept as plain text
