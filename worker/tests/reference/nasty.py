"""Ten thousand texts that tokenizers get wrong: the same ones as `worker/tests/pretrained/nasty.rs` makes.

Each text depends on its number alone. Numbers come from SplitMix64, as everywhere in this project.
"""

COUNT = 10_000
MASK = (1 << 64) - 1

SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\u000b", "\u000c", "\u001c", "\u2028"]
MARKS = [
    "<s>", "</s>", "<unk>", "<0x41>", "<pad>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|im_start|>",
    "<|im_end|>", "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "<tool_call>", "<s", "<|", "|>", "<|eot_id", " <s> ", "\u2581",
]
KNOTS = [
    "e\u0301", "\u00e9", "a\u0308\u0323", "\u1100\u1161\u11a8", "\uac01", "\u212b", "\ufb01", "\u200b", "\u200d", "\u200e\u05d0\u200f",
    "\u202eabc\u202c", "\ufeff", "\u00ad", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3", "\U0001d538", "\U0002f800", "\ufffd", "\ufffe", "\U0010ffff",
    "\u0e33\u0e49", "\u0915\u094d\u0937", "\u0f73", "\u0344", "\u2126", "\u1e9b\u0323", "\u0130", "\u00df",
]
CLIPPED = ["'s", "'T", "'re", "'VE", "'ll", "'\u017f", "'D", "\u2019s", "n't", "''m"]
SIGNS = ["...", "!?", "--", "#", "$%", "\\\\", "()", "\u20ac", "\u3002", "_", "*/", "\"", "`", "\u00b2", "\u2167", "=>"]
# The first character of a script, and how many follow.
SCRIPTS = [
    (0x00C0, 0x100), (0x0370, 0x80), (0x0400, 0x100), (0x05D0, 27), (0x0620, 0x50), (0x0904, 0x60), (0x0E01, 0x50),
    (0x10A0, 0x60), (0x3041, 0xB0), (0x4E00, 0x5000), (0xAC00, 0x2BA4), (0x1F300, 0x300), (0x0300, 0x70), (0x2150, 0x40),
    (0x0660, 10), (0x1D400, 0x100), (0x20000, 0x1000), (0xE000, 0x80), (0x10D40, 0x50), (0xA720, 0xC0),
]


class Stream:
    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, count):
        return self.next() % count

    def one_of(self, choices):
        return choices[self.below(len(choices))]


def letters(stream, count):
    return "".join(chr(ord("a") + stream.below(26) - 32 * (stream.below(8) == 0)) for _ in range(count))


def anything(stream):
    """A character of any plane, whether it is assigned or not; none is half of a pair."""
    code = stream.below(0x110000 - 0x800)
    return chr(code + 0x800 if code >= 0xD800 else code)


def piece(stream):
    kind = stream.below(12)
    if kind == 0:
        return "".join(anything(stream) for _ in range(1 + stream.below(3)))
    if kind == 1:
        return stream.one_of(KNOTS)
    if kind == 2:
        return stream.one_of(SPACES) * (1 + stream.below(4))
    if kind == 3:
        return " " + letters(stream, 1 + stream.below(9))
    if kind == 4:
        return letters(stream, 1 + stream.below(9))
    if kind == 5:
        return "".join(chr(ord("0") + stream.below(10)) for _ in range(1 + stream.below(8)))
    if kind == 6:
        return stream.one_of(CLIPPED)
    if kind == 7:
        code = stream.below(65)
        return chr(code if code < 32 else code + 95)
    if kind in (8, 9):
        first, count = stream.one_of(SCRIPTS)
        return "".join(chr(first + stream.below(count)) for _ in range(1 + stream.below(5)))
    if kind == 10:
        return stream.one_of(MARKS)
    return stream.one_of(SIGNS)


def text(number):
    stream = Stream(number)
    kind = stream.below(64)
    if kind == 0:
        return letters(stream, 100 + stream.below(1900))
    if kind == 1:
        return stream.one_of(SPACES) * (1 + stream.below(200))
    return "".join(piece(stream) for _ in range(stream.below(9)))


def texts():
    return [text(number) for number in range(COUNT)]


def digest(lists, start=0xCBF29CE484222325):
    """FNV-1a, word by word: each list's length and then its numbers."""
    sum_ = start
    for numbers in lists:
        for word in [len(numbers), *numbers]:
            sum_ = ((sum_ ^ word) * 0x100000001B3) & MASK
    return f"{sum_:016x}"
