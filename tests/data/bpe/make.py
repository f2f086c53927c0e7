# SPDX-License-Identifier: Apache-2.0
"""Makes this folder's data, with Hugging Face's `tokenizers` (0.23.3): a vocabulary trained on the licence and on this file,
and what that library encodes some texts as."""
import json
import pathlib

import tokenizers

folder = pathlib.Path(__file__).resolve().parent
texts = [
    "", " ", "a", "Hello world", " Hello world", "Hello, world! How are you?", "the License, and the license",
    "I'm sure they've said we'll go; it's what I'd do, you're right, don't", "IT'S NOT'S 'S 't' 're'll've", "rock 'n' roll",
    "it’s a typographic apostrophe’s", "''s's''", "1", "12345", "3.14159 and 2,718,281", "the 3rd of 10 in 2024", "٣٤٥ Ⅷ ½ ² 一二三",
    "v2.0b3x64", "  two leading spaces", "two  inner   and    more", "trailing space ", "trailing spaces    ", "   ", "\n",
    "line\nline\n\nline\n\n\n", "a \n b\n \n c", "\ttab\t\ttabs \t mixed\t", "\r\nWindows\r\n\r\n", "form\ffeed\vvertical",
    "zero\0byte\x01and\x1f\x7f", "next\u0085line\u0085 \u0085x", "no\u00a0break\u00a0 space \u00a0", "em\u2003space\u2003\u2003wide\u3000ideographic",
    "zero\u200bwidth\u200djoiner\ufeffmark", "Mongolian\u180evowel \u180e separator", "line\u2028separator\u2029paragraph",
    "café naïve Ångström façade", "cafe\u0301 nai\u0308ve A\u030a", "e\u0301\u0302\u0303 \u0301alone", "Straße, Öl und Übermut", "Съешь же ещё этих мягких булок",
    "Ξεσκεπάζω την ψυχοφθόρα", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界。今天天气很好", "こんにちは世界、カタカナ", "안녕하세요 세계", "中文English混合123",
    "😀", "hi 😀😀 there!", "👩‍👩‍👧‍👦 family 👍🏽 🇪🇺", "𝒳 ∈ ℝⁿ, ∑ᵢ xᵢ² ≤ ‖x‖₂", "\U0010ffff\ue000\ufffd\ufffe", "<|endoftext|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 60, "the" * 50 + " " + "the " * 20, " " * 70 + "x", "-" * 80, "=" * 33 + "\n" + "." * 35,
    "0123456789" * 8, "!?!?...(((a)))[[b]]{{c}}", "snake_case_name camelCaseName kebab-case-name", "https://www.apache.org/licenses/LICENSE-2.0?x=1&y=%20#z",
    "for (std::size_t i = 0; i < n; ++i) {\n  sum += x[i] * y[i];  // dot product\n}\n", "def f(x):\n\treturn x ** 2 if x > 0 else -x\n",
    '{"key": [1, 2.5e-3, null], "näme": "\\u00e9\\n"}', "WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.",
    "x" * 20 + "é" * 20 + "世" * 20 + "😀" * 20,
]

tokenizer = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
tokenizer.train([str(folder.parents[2] / "LICENSE"), __file__], vocab_size=600, min_frequency=2, show_progress=False)
tokenizer.save_model(str(folder))
lines = [json.dumps({"text": text, "ids": tokenizer.encode(text).ids}, ensure_ascii=False) for text in texts]
(folder / "encodings.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8", newline="\n")
